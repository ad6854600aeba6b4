"""``train.torch.DistributedOptimizer``, on every engine."""

from __future__ import annotations

import copy
import statistics
from typing import Any

import numpy as np
import pytest

from skate import train

torch = pytest.importorskip("torch")

SERVER = {"sync": "parameter_server"}
needs_memory = pytest.mark.differs(ray="ranks of several machines share no memory")


Run = Any  # run(loop, **config): what rank 0's loop returned


def make_model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
    )


def wrap(optimizer: Any, model: Any, **options: Any) -> Any:
    from skate.train.torch import DistributedOptimizer

    return DistributedOptimizer(optimizer, model, **options)


def rows(step: int, rank: int = 0, world_size: int = 1) -> Any:
    rng = np.random.default_rng(step)
    return torch.from_numpy(rng.normal(size=(12, 4)).astype("f4"))[rank::world_size]


def loss_of(model: Any, x: Any) -> Any:
    return model(x).square().mean()


def weights_of(model: Any) -> Any:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()


def same(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def accumulate(context: Any, ways: dict[str, Any]) -> Any:
    model = make_model()
    optimizer = wrap(torch.optim.SGD(model.parameters(), 0.1), model, **ways)
    for step in range(3):
        optimizer.zero_grad()
        with optimizer.no_sync():
            loss_of(model, rows(2 * step, context.rank, 2)).backward()
        loss_of(model, rows(2 * step + 1, context.rank, 2)).backward()
        optimizer.step()
    return weights_of(model), None


@needs_memory
@pytest.mark.parametrize("ways", [{}, {"overlap": True}, SERVER])
def test_gradients_add_up_without_sync(run: Run, ways: dict[str, Any]) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, rows(2 * step)).backward()
        loss_of(model, rows(2 * step + 1)).backward()
        optimizer.step()
    same(run(accumulate, ways=ways)[0], weights_of(model))


class Branches(torch.nn.Module):
    """Uses other parameters on each rank, and some on none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Any, rank: int) -> Any:
        return self.parts[3](self.parts[rank](x))


def branch(context: Any, ways: dict[str, Any]) -> Any:
    model = Branches()
    adam = torch.optim.Adam(model.parameters(), 0.01, weight_decay=0.1)
    optimizer = wrap(adam, model, **ways)
    for step in range(3):
        optimizer.zero_grad()
        model(rows(step, context.rank, 2), context.rank).square().mean().backward()
        optimizer.step()
    return weights_of(model), sorted(optimizer.state_dict()["state"])


@pytest.mark.parametrize("ways", [{}, {"overlap": True}, {"shard": False}])
def test_parameters_may_be_unused_on_some_ranks_or_on_all(
    run: Run, ways: dict[str, Any]
) -> None:
    model = Branches()
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=0.1)
    for step in range(3):
        optimizer.zero_grad()
        for rank in range(2):
            loss = model(rows(step, rank, 2), rank).square().mean() / 2
            loss.backward()
        optimizer.step()
    weights, with_state = run(branch, ways=ways)
    same(weights, weights_of(model))
    assert with_state == [0, 1, 2, 3, 6, 7]  # part 2 was left alone


def scale(context: Any) -> Any:
    model = make_model()
    optimizer = wrap(torch.optim.SGD(model.parameters(), 0.1), model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=2)
    scales = []
    for step in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, rows(step, context.rank, 2))
        if step == 2 and context.rank == 1:
            loss = loss * float("inf")
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return weights_of(model), scales


def test_mixed_precision_skips_a_step_on_all_ranks(run: Run) -> None:
    weights, scales = run(scale)
    assert np.isfinite(weights).all()
    assert scales[2] == scales[1] / 2


def save_and_load(context: Any, more_ranks: bool) -> Any:
    model = make_model()
    adam = torch.optim.Adam(model.parameters(), 0.01)
    optimizer = wrap(adam, model)
    for step in range(4):
        if step == 2:
            if context.rank > 0 and not more_ranks:  # the others need not ask for it
                saved = None
            else:
                saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            context.barrier()
        descend(model, optimizer, step, context)
    # From what rank 0 saved, a new one goes on to the same weights.
    first = weights_of(model).copy()
    again = make_model()
    other = wrap(torch.optim.Adam(again.parameters(), 0.01), again)
    if saved is None:
        return first, None
    if more_ranks:
        again.load_state_dict(saved[0])
        context.barrier()
        other.load_state_dict(copy.deepcopy(saved[1]))  # it goes on with that
        for step in (2, 3):
            descend(again, other, step, context)
        assert (weights_of(again) == first).all()
    return first, saved[1]


def descend(model: Any, optimizer: Any, step: int, context: Any = None) -> None:
    part = (context.rank, context.world_size) if context else (0, 1)
    optimizer.zero_grad()
    loss_of(model, rows(step, *part)).backward()
    optimizer.step()


@pytest.mark.parametrize("more_ranks", [False, True])
def test_the_state_is_that_of_one_optimizer(run: Run, more_ranks: bool) -> None:
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    descend(model, optimizer, 0)
    descend(model, optimizer, 1)
    expected = optimizer.state_dict()
    _, found = run(save_and_load, more_ranks=more_ranks)
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for number, state in expected["state"].items():
        assert found["state"][number].keys() == state.keys()
        for key, value in state.items():
            same(found["state"][number][key], value)


def not_a_number(context: Any) -> Any:
    model = make_model()
    optimizer = wrap(torch.optim.SGD(model.parameters(), 0.1), model, check_nan=True)
    loss = loss_of(model, rows(0))
    if context.rank == 1:
        loss = loss + model[2].bias.sum() * float("nan")
    with pytest.raises(FloatingPointError, match=r"rank 1: 2\.bias"):
        loss.backward()
    optimizer.zero_grad()
    return weights_of(model), None


def test_a_nan_is_an_error_on_every_rank_that_names_it(run: Run) -> None:
    same(run(not_a_number)[0], weights_of(make_model()))


def step_by_lbfgs(context: Any) -> Any:
    model = make_model()
    optimizer = wrap(torch.optim.LBFGS(model.parameters(), 0.1, max_iter=4), model)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = loss_of(model, rows(0, context.rank, 2))
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights_of(model), optimizer.choice


def test_any_optimizer_steps_on_every_rank(run: Run) -> None:
    weights, choice = run(step_by_lbfgs)
    assert not np.allclose(weights, weights_of(make_model()))
    assert "step: replicated" in choice


def choose(context: Any) -> Any:
    model = make_model()
    optimizer = wrap(torch.optim.SGD(model.parameters(), 0.1), model)
    for step in range(14):
        descend(model, optimizer, step, context)
    return weights_of(model), optimizer.choice


@pytest.mark.differs(inline="there is nothing to overlap")
def test_overlap_is_measured_and_said(run: Run) -> None:
    assert "as measured" in run(choose)[1]


def types(context: Any, dtype: Any, ways: dict[str, Any]) -> Any:
    model = make_model().to(dtype)
    model[2].to(torch.float32)
    optimizer = wrap(torch.optim.SGD(model.parameters(), 0.1, 0.9), model, **ways)
    for step in range(3):
        optimizer.zero_grad()
        hidden = model[1](model[0](rows(step, context.rank, 2).to(dtype)))
        loss_of(model[2], hidden.float()).backward()
        optimizer.step()
    return weights_of(model.float()), None


@pytest.mark.parametrize("ways", [{}, {"compression": "bf16"}])
def test_parameters_may_have_several_dtypes(run: Run, ways: dict[str, Any]) -> None:
    exact = run(types, dtype=torch.float64, ways={})[0]
    found = run(types, dtype=torch.bfloat16, ways=ways)[0]
    np.testing.assert_allclose(found, exact, atol=0.05)


def refuse(context: Any) -> Any:
    for options, message in [
        ({"sync": "mail"}, "sync='mail'; expected \"allreduce\""),
        ({"bucket_bytes": 0}, "bucket_bytes=0; expected at least 1"),
        ({"compression": "zip"}, "compression='zip'; expected"),
        ({"overlap": "maybe"}, "overlap='maybe'; expected True"),
        ({"compression": "bf16", **SERVER}, 'needs sync="allreduce"'),
    ]:
        model = make_model()
        with pytest.raises(ValueError, match=message):
            wrap(torch.optim.SGD(model.parameters(), 0.1), model, **options)
    optimizer = wrap(torch.optim.SGD(model.parameters(), 0.1), model)
    with pytest.raises(RuntimeError, match="cannot be added"):
        optimizer.add_param_group({"params": []})
    return weights_of(model), None


def test_wrong_options_of_an_optimizer_are_refused(run: Run) -> None:
    run(refuse)


def learn_digits(context: Any, ways: dict[str, Any] | None) -> Any:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy(digits.data.astype("f4") / 16)
    y = torch.from_numpy(digits.target)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
    )
    optimizer: Any = torch.optim.Adam(model.parameters(), 0.01)
    rank, world_size = 0, 1
    if ways is not None:
        optimizer = wrap(optimizer, model, **ways)
        rank, world_size = context.rank, context.world_size
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(y)))
    held_out, order = order[:300], order[300:]
    for _ in range(5):
        for batch in order.split(64)[:-1]:
            mine = batch[rank::world_size]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[mine]), y[mine]).backward()
            optimizer.step()
    right = model(x[held_out]).argmax(1) == y[held_out]
    return weights_of(model), float(right.float().mean())


@pytest.mark.parametrize("ways", [{}, pytest.param(SERVER, marks=needs_memory)])
def test_digits_are_learnt_as_by_one_process(run: Run, ways: dict[str, Any]) -> None:
    pytest.importorskip("sklearn")
    _, alone = learn_digits(None, None)
    _, together = run(learn_digits, ways=ways)
    assert alone > 0.9
    assert abs(together - alone) < 0.02


def count_fresh_pages(context: Any) -> Any:
    import resource

    layers = [torch.nn.Linear(1024, 1024, bias=False) for _ in range(12)]  # 4 MB each
    model = torch.nn.Sequential(*layers)
    optimizer = wrap(torch.optim.SGD(model.parameters(), 0.1), model, **SERVER)
    faults = []
    for _ in range(9):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        optimizer.zero_grad()
        loss_of(model, torch.ones(2, 1024)).backward()
        optimizer.step()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return weights_of(model), faults


@pytest.mark.differs(
    inline="the heap is the driver's, which keeps to its own ways",
    ray="ranks of several machines share no memory",
)
def test_a_step_uses_the_memory_that_the_one_before_has_freed(run: Run) -> None:
    _, faults = run(count_fresh_pages)
    # A rank's half of the gradients is 6,000 pages; torch itself takes a few. Once a
    # gradient of the step before is freed late, the heap grows by one or two of them.
    assert statistics.median(faults[3:]) < 1500


# One start of the ranks for all loops: processes cost more than what they do here.
JOBS: list[tuple[Any, dict[str, Any]]] = [
    *((accumulate, {"ways": ways}) for ways in ({}, {"overlap": True}, SERVER)),
    *((branch, {"ways": w}) for w in ({}, {"overlap": True}, {"shard": False})),
    (scale, {}),
    *((save_and_load, {"more_ranks": more_ranks}) for more_ranks in (False, True)),
    (not_a_number, {}),
    (step_by_lbfgs, {}),
    (choose, {}),
    (types, {"dtype": torch.float64, "ways": {}}),
    *(
        (types, {"dtype": torch.bfloat16, "ways": w})
        for w in ({}, {"compression": "bf16"})
    ),
    (refuse, {}),
    (count_fresh_pages, {}),
    *((learn_digits, {"ways": ways}) for ways in ({}, SERVER)),
]


def do_jobs() -> None:
    context = train.context()
    for loop, config in JOBS:
        try:
            weights, more = loop(context, **config)
            top = context.allreduce(weights.copy(), "max")
            assert (top == context.allreduce(weights.copy(), "min")).all()
            done = weights.copy(), more
        except Exception as error:  # of this job; the others go on
            done = error
        context.report({"done": done})


_done: dict[str, list[Any]] = {}  # by engine: what the jobs gave


@pytest.fixture
def run(engine_name: str, start: Any) -> Run:
    if engine_name not in _done:
        start(num_cpus=2, preload=("torch",))
        history = train.run(do_jobs, 2).history
        _done[engine_name] = [report["done"] for report in history]

    def find(loop: Any, **config: Any) -> Any:
        done = _done[engine_name][JOBS.index((loop, config))]
        if isinstance(done, Exception):
            raise done
        return done

    return find
