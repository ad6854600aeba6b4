import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skate
from skate import train

pytestmark = pytest.mark.usefixtures("engine")


def reduce_ranks() -> None:
    context = train.context()
    mine = np.full(3, float(context.rank))
    total = context.allreduce(mine.copy())
    largest = context.allreduce(mine.copy(), op="max")
    shared = context.empty((2, 2), np.float32)
    shared[:] = context.rank + 1
    context.allreduce(shared, op="mean")
    first = context.broadcast(mine.copy(), root=1)
    context.barrier()
    context.report(
        {
            "total": total.tolist(),
            "largest": largest.tolist(),
            "shared": shared.tolist(),
            "first": first.tolist(),
            "world_size": context.world_size,
        }
    )


def count_to(config: dict[str, Any]) -> None:
    """Counts from the checkpoint on; fails once, on ``fail_at``, if a file says so."""
    context = train.context()
    start = context.checkpoint or 0
    for i in range(start, config["end"]):
        armed = config.get("armed")
        if armed and context.rank == 1 and i == config["fail_at"] and armed.exists():
            armed.unlink()
            raise OSError("disk gone")
        context.barrier()
        context.report({"i": i, "start": start}, checkpoint=i + 1)


def one_fails() -> None:
    context = train.context()
    if context.rank == 1:
        raise KeyError("rank 1 stumbled")
    context.allreduce(np.zeros(3))


def one_dies() -> None:
    context = train.context()
    if context.rank == 1:
        os._exit(1)
    context.allreduce(np.zeros(3))


def disagree() -> None:
    context = train.context()
    context.allreduce(np.zeros(3 + context.rank))


def test_ranks_reduce_broadcast_and_meet() -> None:
    result = train.run(reduce_ranks, 3)
    assert result.metrics == {
        "total": [3.0] * 3,
        "largest": [2.0] * 3,
        "shared": [[2.0, 2.0], [2.0, 2.0]],
        "first": [1.0] * 3,
        "world_size": 3,
    }


def test_one_rank_is_a_world() -> None:
    def alone() -> None:
        context = train.context()
        x = context.empty(4, np.float64)
        x[:] = 1.5
        context.allreduce(x, op="mean")
        context.report({"x": x.tolist(), "rank": context.rank})

    assert train.run(alone, 1).metrics == {"x": [1.5] * 4, "rank": 0}


def test_reports_of_rank_0_arrive_in_order() -> None:
    seen = []
    result = train.run(
        count_to,
        2,
        config={"end": 20},
        on_report=lambda metrics, checkpoint: seen.append((metrics["i"], checkpoint)),
    )
    assert seen == [(i, i + 1) for i in range(20)]
    assert [metrics["i"] for metrics in result.history] == list(range(20))
    assert result.metrics["i"] == 19
    assert result.checkpoint == 20
    assert result.path is None


def test_a_run_can_be_resumed_from_its_directory(tmp_path: Path) -> None:
    first = train.run(count_to, 1, config={"end": 3}, checkpoint_dir=tmp_path)
    assert first.path is not None
    assert train.load_checkpoint(tmp_path) == 3
    second = train.run(
        count_to, 1, config={"end": 5}, checkpoint_dir=tmp_path, resume=True
    )
    assert [(m["i"], m["start"]) for m in second.history] == [(3, 3), (4, 3)]


def test_without_resume_a_run_begins_anew(tmp_path: Path) -> None:
    for _ in range(2):
        run = train.run(count_to, 1, config={"end": 2}, checkpoint_dir=tmp_path)
        assert [m["i"] for m in run.history] == [0, 1]


def test_an_error_of_one_rank_ends_all_and_is_raised() -> None:
    with pytest.raises(KeyError, match="rank 1 stumbled"):
        train.run(one_fails, 3)


@pytest.mark.differs(inline="ends the program: ranks have no process of their own")
def test_a_rank_that_dies_is_an_error() -> None:
    died = (skate.exceptions.ActorDiedError, skate.exceptions.RankDiedError)
    with pytest.raises(died):
        train.run(one_dies, 3)


def test_ranks_that_disagree_about_shapes_are_told() -> None:
    with pytest.raises(skate.exceptions.ShapeMismatchError):
        train.run(disagree, 2)


def test_after_a_failure_the_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    armed = tmp_path / "armed"
    armed.touch()
    config = {"end": 6, "fail_at": 4, "armed": armed}
    result = train.run(count_to, 2, config=config, max_failures=1)
    assert [m["i"] for m in result.history] == list(range(6))
    assert result.metrics["start"] == 4


def test_a_failure_too_many_is_raised(tmp_path: Path) -> None:
    armed = tmp_path / "armed"
    armed.touch()
    with pytest.raises(OSError, match="disk gone"):
        train.run(count_to, 2, config={"end": 6, "fail_at": 4, "armed": armed})


def test_the_context_exists_in_a_loop_only() -> None:
    with pytest.raises(RuntimeError, match="outside of a training loop"):
        train.context()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, "num_workers=0; expected at least 1"),
        ({"num_workers": 1, "resume": True}, "resume=True needs checkpoint_dir"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train.run(reduce_ranks, **options)


# torch ----------------------------------------------------------------------------


def make_model() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    )


def rows(step: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(step)
    x = rng.normal(size=(12, 4)).astype(np.float32)
    return x, x.sum(axis=1, keepdims=True)


def descend(model: Any, optimizer: Any, part: slice, to_none: bool = False) -> None:
    import torch

    for step in range(5):
        x, y = (torch.from_numpy(array[part]) for array in rows(step))
        model.zero_grad() if to_none else optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


def descend_together(to_none: bool) -> None:
    import torch

    from skate.train.torch import DistributedOptimizer

    context = train.context()
    torch.manual_seed(context.rank)
    model = make_model()
    if context.rank > 0:  # all begin with rank 0's, whatever they have
        torch.nn.init.zeros_(model[0].weight)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = DistributedOptimizer(sgd, model)
    n = 12 // context.world_size
    part = slice(context.rank * n, (context.rank + 1) * n)
    descend(model, optimizer, part, to_none)
    flat = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    spread = context.allreduce(flat.copy(), op="max") - context.allreduce(
        flat.copy(), op="min"
    )
    context.report({"weights": flat, "spread": float(spread.max())})


@pytest.mark.parametrize(("world_size", "to_none"), [(1, False), (2, True), (3, False)])
def test_ranks_with_a_share_of_the_rows_learn_what_one_with_all_does(
    world_size: int, to_none: bool
) -> None:
    torch = pytest.importorskip("torch")
    model = make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    descend(model, sgd, slice(None))
    alone = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    metrics = train.run(descend_together, world_size, config=to_none).metrics
    assert metrics["spread"] == 0.0
    np.testing.assert_allclose(metrics["weights"], alone, rtol=1e-4, atol=1e-5)
