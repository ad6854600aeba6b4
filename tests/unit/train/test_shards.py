"""Layouts, shards and their optimizers: pure, without an engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skate.train import SGD, Adam
from skate.train.layout import Layout, lay_out
from skate.train.shard import Gradient, Rules, Shard, Span

shapes = st.lists(
    st.lists(st.integers(1, 7), max_size=3).map(tuple), min_size=1, max_size=6
)


def allocate(size: int, dtype: Any) -> Any:
    return np.full(size, np.nan, dtype)


def shards_of(layout: Layout, params: Any, rules: Rules) -> list[Shard]:
    parts = zip(layout.parts, layout.split(params), strict=True)
    return [Shard(part, blocks, rules, allocate) for part, blocks in parts]


def push(
    layout: Layout, shards: list[Shard], worker: int, gradient: Any, version: int = -1
) -> list[Any]:
    answers = []
    for shard, blocks in zip(shards, layout.split(gradient), strict=True):
        spans = tuple(Span(i, 0, block.size) for i, block in enumerate(blocks))
        at = shard.version if version < 0 else version
        token = shard._tokens.get(worker) or shard.join(worker, 0.0)
        answers.append(shard.push(worker, token, at, Gradient(spans, blocks), 0.0))
    return answers


def rules(mode: str = "sync", **options: Any) -> Rules:
    options = {"optimizer": SGD(0.1), "reduce": "mean", "num_workers": 2} | options
    return Rules(mode, **options)


# layout ---------------------------------------------------------------------------


@settings(deadline=None)
@given(shapes, st.integers(1, 5), st.sampled_from([np.float32, np.float64, None]))
def test_a_layout_covers_every_element_once(
    shapes: list[Any], num_shards: int, dtype: Any
) -> None:
    rng = np.random.default_rng(0)
    params = {
        str(i): rng.normal(size=shape).astype(dtype or (np.float32, np.float64)[i % 2])
        for i, shape in enumerate(shapes)
    }
    rows = sum(shape[0] if shape else 1 for shape in shapes)
    if num_shards > rows:
        with pytest.raises(ValueError, match=f"expected 1 to {rows}"):
            lay_out(params, num_shards)
        return
    layout = lay_out(params, num_shards)
    assert len(layout.parts) == num_shards
    assert all(part.pieces for part in layout.parts)
    blocks = layout.split(params)
    assert sum(b.size for part in blocks for b in part) == sum(
        p.size for p in params.values()
    )
    back = layout.tree_in(blocks)
    assert list(back) == list(params)
    for name, array in params.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype


def test_shards_end_where_arrays_do_if_that_is_even_enough() -> None:
    params = [np.zeros((10, 10)), np.zeros((9, 10)), np.zeros((11, 10))]
    layout = lay_out(params, 3)
    assert [len(part.pieces) for part in layout.parts] == [1, 1, 1]
    blocks = layout.split(params)
    assert all(layout.leaf_in(i, blocks).base is not None for i in range(3))


def test_a_large_array_is_cut_between_rows() -> None:
    layout = lay_out([np.zeros((100, 3)), np.zeros(3)], 2)
    first, second = (part.pieces for part in layout.parts)
    assert (first[0].start, first[0].stop) == (0, 50)
    assert (second[0].start, second[0].stop) == (50, 100)


def test_a_parameter_on_two_shards_is_refused() -> None:
    weight = np.zeros((4, 4))
    with pytest.raises(ValueError, match=r"params\['a'\] and params\['b'\] share mem"):
        lay_out({"a": weight, "b": weight.T}, 2)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({}, ValueError, "no arrays"),
        ({"a": "word"}, TypeError, r"params\['a'\] is 'word'"),
        ({"a": None, "b": [np.array([1j])]}, TypeError, r"params\['b'\]\[0\]"),
    ],
)
def test_what_is_no_array_is_refused(params: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        lay_out(params, 1)


# synchronous steps equal one process -------------------------------------------------


def torch_steps(optimizer: Any, params: Any, gradients: list[Any]) -> list[Any]:
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(p, dtype=torch.float64) for p in params]
    if isinstance(optimizer, SGD):
        theirs = torch.optim.SGD(
            tensors,
            optimizer.lr,
            momentum=optimizer.momentum,
            weight_decay=optimizer.weight_decay,
            nesterov=optimizer.nesterov,
        )
    else:
        theirs = torch.optim.Adam(
            tensors, optimizer.lr, weight_decay=optimizer.weight_decay
        )
    for step in gradients:
        for tensor, gradient in zip(tensors, step, strict=True):
            tensor.grad = torch.tensor(gradient, dtype=torch.float64)
        theirs.step()
    return [tensor.numpy() for tensor in tensors]


@settings(deadline=None, max_examples=40)
@given(
    shapes,
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from(
        [
            SGD(0.1),
            SGD(0.1, momentum=0.9),
            SGD(0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
            Adam(0.01),
            Adam(0.01, weight_decay=0.1),
        ]
    ),
    st.integers(0, 1000),
)
def test_synchronous_steps_are_those_of_one_process(
    shapes: list[Any], num_shards: int, workers: int, optimizer: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    params = [rng.normal(size=shape) for shape in shapes]
    rows = sum(shape[0] if shape else 1 for shape in shapes)
    layout = lay_out(params, min(num_shards, rows))
    shards = shards_of(layout, params, rules(optimizer=optimizer, num_workers=workers))
    means = []
    for step in range(4):
        given = [[rng.normal(size=shape) for shape in shapes] for _ in range(workers)]
        means.append([np.mean(parts, axis=0) for parts in zip(*given, strict=True)])
        for worker in rng.permutation(workers):
            push(layout, shards, int(worker), given[worker])
        if step % 2:
            for shard in shards:
                shard.published = True
    found = layout.tree_in([shard.weights for shard in shards])
    for ours, theirs in zip(found, torch_steps(optimizer, params, means), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_the_sum_does_not_depend_on_who_comes_first() -> None:
    rng = np.random.default_rng(0)
    params = [np.zeros(1000, np.float32)]
    given = [[rng.normal(size=1000).astype(np.float32)] for _ in range(3)]
    layout = lay_out(params, 2)
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        shards = shards_of(layout, params, rules(num_workers=3))
        for worker in order:
            push(layout, shards, worker, given[worker])
        found.append(layout.tree_in([shard.weights for shard in shards])[0])
    assert found[0].tobytes() == found[1].tobytes()


def test_a_schedule_is_asked_for_each_step() -> None:
    layout = lay_out([np.zeros(1)], 1)
    optimizer = SGD(lambda step: 1.0 if step == 0 else 0.5)
    (shard,) = shards_of(layout, [np.zeros(1)], rules(optimizer=optimizer))
    for _ in range(2):
        for worker in range(2):
            push(layout, [shard], worker, [np.ones(1)])
    assert shard.weights[0][0] == -1.5


# who is waited for -------------------------------------------------------------------


def one_shard(**options: Any) -> tuple[Layout, list[Shard], Any]:
    params = [np.zeros(2)]
    layout = lay_out(params, 1)
    return layout, shards_of(layout, params, rules(**options)), [np.ones(2)]


def test_backup_workers_are_not_waited_for() -> None:
    layout, shards, ones = one_shard(num_workers=3, backup_workers=1)
    push(layout, shards, 0, ones)
    assert not shards[0].may_read(0, 1)
    push(layout, shards, 2, ones)
    assert shards[0].may_read(0, 1)
    (answer,) = push(layout, shards, 1, ones, version=0)
    assert (answer.accepted, answer.staleness) == (False, 1)
    assert shards[0].stats().late == 1
    assert shards[0].weights[0].tolist() == [-0.1, -0.1]


def test_a_worker_that_leaves_is_no_longer_waited_for() -> None:
    layout, shards, ones = one_shard(num_workers=3)
    for worker in range(3):
        shards[0].join(worker, 0.0)
    push(layout, shards, 0, ones)
    shards[0].leave(0)  # what it gave still counts, but not for another
    push(layout, shards, 1, ones)
    assert shards[0].version == 0
    shards[0].leave(2)
    assert shards[0].version == 1
    push(layout, shards, 1, ones)
    assert shards[0].version == 2


def test_a_worker_that_joins_is_waited_for() -> None:
    layout, shards, ones = one_shard(num_workers=1)
    push(layout, shards, 0, ones)
    shards[0].join(1, 0.0)
    push(layout, shards, 0, ones)
    assert shards[0].version == 1
    push(layout, shards, 1, ones)
    assert shards[0].version == 2


def test_a_gradient_of_a_replaced_worker_is_dropped() -> None:
    _, shards, ones = one_shard()
    old = shards[0].join(0, 0.0)
    shards[0].join(0, 0.0)
    gradient = Gradient((Span(0, 0, 2),), ones)
    assert not shards[0].push(0, old, 0, gradient, 0.0).accepted


def test_a_new_run_begins_with_its_own_workers() -> None:
    layout, shards, ones = one_shard(num_workers=3)
    push(layout, shards, 2, ones)
    shards[0].join(0, 0.0, "second", 1)
    push(layout, shards, 0, ones)
    assert shards[0].version == 1
    assert shards[0].stats().workers == [0]


def test_after_the_deadline_a_step_goes_on_without_the_missing() -> None:
    layout, shards, ones = one_shard(deadline=5.0)
    (shard,) = shards
    shard.join(1, 0.0)
    assert shard.next_deadline(True) is None
    push(layout, shards, 0, ones)
    assert shard.next_deadline(True) == 5.0
    shard.give_up_late(4.0, True)
    assert shard.version == 0
    shard.give_up_late(5.0, True)
    assert shard.version == 1
    assert shard.stats().lost == [1]
    push(layout, shards, 1, ones)  # it lives, and is taken in again
    assert shard.stats().workers == [0, 1]


@settings(deadline=None)
@given(st.integers(0, 3), st.integers(1, 4), st.lists(st.integers(0, 3), max_size=60))
def test_no_worker_runs_further_ahead_than_it_may(
    staleness: int, workers: int, turns: list[int]
) -> None:
    layout, shards, ones = one_shard(
        mode="stale", staleness=staleness, num_workers=workers
    )
    (shard,) = shards
    pulled = [0] * workers  # versions
    steps = [0] * workers
    reading = [False] * workers
    for worker in range(workers):
        shard.join(worker, 0.0)
    for turn in turns:
        worker = turn % workers
        if not reading[worker]:
            if not shard.may_read(worker, 0):
                assert steps[worker] - min(steps) > staleness
                continue
            assert steps[worker] - min(steps) <= staleness
            pulled[worker] = shard.version
            reading[worker] = True
        else:
            (answer,) = push(layout, shards, worker, ones, version=pulled[worker])
            # Ho et al., "More effective distributed ML via a stale synchronous
            # parallel parameter server", 2013: the others' updates in between.
            assert answer.staleness <= (2 * staleness + 1) * (workers - 1)
            steps[worker] += 1
            reading[worker] = False


def test_a_dead_worker_holds_up_the_others_until_the_deadline_only() -> None:
    layout, shards, ones = one_shard(mode="stale", staleness=0, deadline=5.0)
    (shard,) = shards
    shard.join(1, 0.0)
    push(layout, shards, 0, ones)
    assert not shard.may_read(0, 0)
    shard.give_up_late(shard.next_deadline(True) or 0.0, True)
    assert shard.may_read(0, 0)
    assert shard.stats().lost == [1]


def test_an_optimizer_that_raises_ends_the_shard_for_all() -> None:
    def broken(weights: Any, gradient: Any, state: Any, step: int) -> None:
        raise ZeroDivisionError("no step")

    layout, shards, ones = one_shard(optimizer=broken, num_workers=1)
    with pytest.raises(ZeroDivisionError, match="no step"):
        push(layout, shards, 0, ones)
    assert shards[0].may_read(1, 99)
    with pytest.raises(ZeroDivisionError):
        shards[0].check()
