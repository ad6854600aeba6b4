from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skate
from skate import train
from skate.exceptions import (
    ActorDiedError,
    CheckpointError,
    CollectiveTimeoutError,
    RankDiedError,
    ShapeMismatchError,
)

pytestmark = pytest.mark.usefixtures("engine")


def params() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "w": rng.normal(size=(6, 3)).astype(np.float32),
        "b": [rng.normal(size=3), np.zeros(())],
    }


def gradient(rank: int, step: int) -> dict[str, Any]:
    rng = np.random.default_rng((rank, step))
    return {
        "w": rng.normal(size=(6, 3)).astype(np.float32),
        "b": [rng.normal(size=3), rng.normal(size=())],
    }


def leaves(tree: dict[str, Any]) -> list[Any]:
    return [tree["w"], *tree["b"]]


def steps_of_one(ranks: int, steps: int, lr: float = 0.1, momentum: float = 0.9) -> Any:
    """What one process computes with the mean gradients."""
    weights = [np.array(leaf, np.float64) for leaf in leaves(params())]
    velocity = [np.zeros_like(w) for w in weights]
    for step in range(steps):
        given = [leaves(gradient(rank, step)) for rank in range(ranks)]
        for i, w in enumerate(weights):
            mean = np.mean([g[i].astype(np.float64) for g in given], axis=0)
            velocity[i] = momentum * velocity[i] + mean
            w -= lr * velocity[i]
    return weights


def check_close(tree: Any, expected: Any) -> None:
    for ours, theirs in zip(leaves(tree), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def train_together(config: tuple[train.ParameterServer, int]) -> None:
    server, steps = config
    context = train.context()
    worker = server.join()
    weights = worker.pull()
    for step in range(steps):
        if step % 2:  # a tree of the worker's own is copied
            weights = worker.step(gradient(context.rank, step))
            continue
        mine = worker.gradients()  # what is born in the store is not
        for to, values in zip(
            leaves(mine), leaves(gradient(context.rank, step)), strict=True
        ):
            to[...] = values
        weights = worker.step(mine)
    assert not weights["b"][0].flags.writeable  # mapped, not copied
    context.barrier()
    context.report({"weights": weights, "state": worker.state()})


@pytest.mark.parametrize(("placement", "num_shards"), [("actors", 2), ("workers", 3)])
def test_synchronous_workers_learn_what_one_process_does(
    placement: str, num_shards: int
) -> None:
    server = train.ParameterServer(
        params(),
        num_shards=num_shards,
        optimizer=train.SGD(0.1, momentum=0.9),
        placement=placement,
    )
    result = train.run(train_together, 2, config=(server, 4))
    check_close(result.metrics["weights"], steps_of_one(2, 4))
    state = result.metrics["state"]
    assert state["versions"] == [4] * num_shards
    assert state["gradients"] == [8] * num_shards
    # From the state the run goes on, over another number of shards.
    again = train.ParameterServer(
        params(), num_shards=1, optimizer=train.SGD(0.1, momentum=0.9)
    )
    again.restore(state)
    check_close(again.pull(), steps_of_one(2, 4))
    other = train.ParameterServer({"w": np.zeros(3)}, optimizer=train.SGD(0.1))
    with pytest.raises(CheckpointError, match=r"params\['b'\]\[0\] is not expected"):
        other.restore(state)


@skate.remote
class Descent:
    """A worker that is no rank of a run: it minimizes (w - center)^2 / 2."""

    def __init__(self, server: train.ParameterServer, number: int) -> None:
        self.worker = server.join(number)

    def run(self, steps: int, center: float) -> tuple[float, int]:
        largest = 0
        for _ in range(steps):
            w = self.worker.pull()
            self.worker.push([w[0] - np.float32(center)])
            largest = max(largest, self.worker.staleness)
        return float(self.worker.pull()[0][0]), largest

    def die(self) -> None:
        self.worker.pull()
        os._exit(1)

    def leave(self) -> None:
        self.worker.leave()


def one_weight(**options: Any) -> train.ParameterServer:
    options = {"optimizer": train.SGD(0.2)} | options
    return train.ParameterServer([np.zeros(4, np.float32)], **options)


def test_asynchronous_workers_find_the_minimum_of_the_mean() -> None:
    server = one_weight(mode="async")
    # The minimum of the two workers' mean is 2; each alone would go to its own.
    workers = [Descent.remote(server, i) for i in range(2)]
    skate.get([w.run.remote(60, 2.0) for w in workers])
    (stats,) = server.stats()
    assert stats.version == stats.gradients == 120
    assert sum(stats.staleness.values()) == 120
    np.testing.assert_allclose(server.pull()[0], 2.0, atol=0.01)
    server.close()


def test_bounded_staleness_holds_up_who_is_ahead() -> None:
    server = one_weight(mode="stale", staleness=1, num_workers=2)
    workers = [Descent.remote(server, i) for i in range(2)]
    refs = [w.run.remote(40, 1.0) for w in workers]
    # One that ends must not hold up the other.
    server.watch(dict(enumerate(refs)))
    for weight, staleness in skate.get(refs):
        assert abs(weight - 1.0) < 0.05
        assert staleness <= 3  # (2 * 1 + 1) * (2 - 1)
    np.testing.assert_allclose(server.pull()[0], 1.0, atol=0.01)


@pytest.mark.differs(inline="ends the program: workers have no process of their own")
def test_the_others_go_on_when_a_worker_dies() -> None:
    server = one_weight(mode="stale", staleness=0, num_workers=2)
    first, second = (Descent.remote(server, i) for i in range(2))
    dying = second.die.remote()
    server.watch({1: dying})
    weight, _ = skate.get(first.run.remote(30, 1.0))
    assert weight > 0.9
    with pytest.raises(ActorDiedError):
        skate.get(dying)
    assert server.stats()[0].workers == [0]
    # It joins again, and both go on.
    third = Descent.remote(server, 1)
    refs = [w.run.remote(5, 1.0) for w in (first, third)]
    server.watch(dict(enumerate(refs)))
    skate.get(refs)


def test_a_synchronous_step_goes_on_after_the_deadline() -> None:
    server = one_weight(num_workers=2, deadline=0.05)
    one = Descent.remote(server, 0)
    weight, _ = skate.get(one.run.remote(30, 1.0))
    assert weight > 0.9  # the other has never come
    server.close()


def test_a_worker_that_leaves_is_not_waited_for() -> None:
    server = one_weight(num_workers=2)
    one, two = (Descent.remote(server, i) for i in range(2))
    skate.get(two.leave.remote())
    assert skate.get(one.run.remote(30, 1.0))[0] > 0.9
    assert server.stats()[0].workers == [0]
    server.close()


def add_up(server: train.ParameterServer) -> None:
    context = train.context()
    worker = server.join()
    first = worker.pull()[0].tolist()
    sums = [
        worker.step([np.full(3, context.rank + step + 1, np.int64)])[0].tolist()
        for step in range(3)
    ]
    context.report({"first": first, "sums": sums})


@pytest.mark.parametrize("placement", ["actors", "workers"])
def test_without_an_optimizer_workers_read_the_sums(placement: str) -> None:
    server = train.ParameterServer(
        [np.arange(3)], optimizer=None, placement=placement, num_shards=2
    )
    metrics = train.run(add_up, 3, config=server).metrics
    assert metrics["first"] == [0, 1, 2]
    assert metrics["sums"] == [[6] * 3, [9] * 3, [12] * 3]


def test_sparse_rows_change_alone() -> None:
    table = np.ones((10, 2), np.float32)
    server = train.ParameterServer(
        {"table": table, "bias": np.zeros(3, np.float32)},
        num_shards=3,
        optimizer=train.SGD(1.0, momentum=0.5),
        num_workers=1,
    )
    worker = server.join(0)
    bias = np.ones(3, np.float32)
    worker.pull()
    rows = train.Rows(np.array([1, 8, 8]), np.ones((3, 2), np.float32))
    worker.push({"table": rows, "bias": bias})
    found = worker.pull()
    expected = table.copy()
    expected[1] -= 1
    expected[8] -= 2
    np.testing.assert_array_equal(found["table"], expected)
    np.testing.assert_array_equal(found["bias"], -bias)
    rows = train.Rows(np.array([1]), np.ones((1, 2), np.float32))
    worker.push({"table": rows, "bias": bias})
    expected[1] -= 1.5  # its own momentum only
    np.testing.assert_array_equal(worker.pull()["table"], expected)
    with pytest.raises(ShapeMismatchError, match=r"rows 10 to 10 of params\['table'\]"):
        worker.push({"table": train.Rows([10], table[:1]), "bias": bias})


def test_an_optimizer_of_ones_own() -> None:
    def signs(weights: Any, gradient: Any, state: dict[str, Any], step: int) -> None:
        state["seen"] = state.get("seen", 0) + 1
        weights -= np.sign(gradient) * state["seen"]

    server = one_weight(optimizer=signs, num_workers=1)
    worker = server.join(0)
    for _ in range(3):
        worker.pull()
        worker.push([np.full(4, 7, np.float32)])
    assert worker.pull()[0].tolist() == [-6.0] * 4

    def broken(weights: Any, gradient: Any, state: dict[str, Any], step: int) -> None:
        raise ZeroDivisionError("no step")

    server = one_weight(optimizer=broken, num_workers=1)
    worker = server.join(0)
    worker.pull()
    worker.push([np.ones(4, np.float32)])
    with pytest.raises(ZeroDivisionError, match="no step"):
        worker.pull()


def test_gradients_unlike_the_parameters_are_refused() -> None:
    server = one_weight(num_workers=1, check_finite=True)
    worker = server.join(0)
    good = np.ones(4, np.float32)
    with pytest.raises(ValueError, match="pull\\(\\) first"):
        worker.push([good])
    worker.pull()
    for bad, message in [
        ([np.ones(3, np.float32)], r"float32 \(3,\) for params\[0\]; expected float32"),
        ([np.ones(4)], r"pushed float64 \(4,\) for params\[0\]"),
        ([good, good], r"params\[1\] is not expected"),
        ({"x": good}, r"params\[0\] is missing; params\['x'\] is not expected"),
    ]:
        with pytest.raises(ShapeMismatchError, match=message):
            worker.push(bad)
    with pytest.raises(FloatingPointError, match=r"gradient of params\[0\] has NaN"):
        worker.push([np.full(4, np.nan, np.float32)])
    worker.push([good])
    with pytest.raises(ValueError, match="has pushed a gradient for these weights"):
        worker.push([good])


def test_the_weights_of_a_dead_shard_are_missed_by_name() -> None:
    server = one_weight(num_workers=1)
    worker = server.join(0)
    server.close()
    with pytest.raises(ActorDiedError, match="a shard of the parameter server is gone"):
        worker.pull()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_shards": 0}, "num_shards=0: expected 1 to 4"),
        ({"num_shards": 5}, "num_shards=5: expected 1 to 4"),
        ({"mode": "lazy"}, "mode='lazy'; expected one of \"sync\""),
        ({"placement": "moon"}, "placement='moon'"),
        ({"optimizer": None, "mode": "async"}, 'only mode="sync" has steps'),
        ({"optimizer": train.SGD(-1.0)}, "lr=-1.0"),
        ({"num_workers": 2, "backup_workers": 2}, "backup_workers=2; expected"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"staleness": -1}, "staleness=-1"),
        ({"deadline": 0}, "deadline=0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        one_weight(**options)


def test_wrong_uses_are_refused() -> None:
    with pytest.raises(TypeError, match=r"expected train\.SGD"):
        one_weight(optimizer="adam")
    with pytest.raises(ValueError, match="only floats can be averaged"):
        train.ParameterServer([np.zeros(3, np.int64)], optimizer=train.SGD(0.1))
    server = one_weight()
    with pytest.raises(ValueError, match="join\\(\\) needs a number"):
        server.join()
    with pytest.raises(ValueError, match="must know for whom to wait"):
        server.join(0)


def two_fail(config: tuple[train.ParameterServer, Path]) -> None:
    server, armed = config
    context = train.context()
    worker = server.join()
    if context.checkpoint is not None and context.rank == 0:
        worker.restore(context.checkpoint)
    context.barrier()
    weights = worker.pull()
    while worker.version < 4:
        if context.rank == 1 and worker.version == 2 and armed.exists():
            armed.unlink()
            raise OSError("cable pulled")
        weights = worker.step(gradient(context.rank, worker.version))
        state = worker.state() if context.rank == 0 else None
        context.barrier()  # the state is of one step on all shards
        context.report({"version": worker.version, "weights": weights}, state)


@pytest.mark.parametrize("placement", ["actors", "workers"])
def test_a_run_with_a_server_goes_on_after_a_failure(
    placement: str, tmp_path: Path
) -> None:
    armed = tmp_path / "armed"
    armed.touch()
    server = train.ParameterServer(
        params(),
        num_shards=2,
        optimizer=train.SGD(0.1, momentum=0.9),
        placement=placement,
    )
    result = train.run(two_fail, 2, config=(server, armed), max_failures=1)
    assert result.failures == 1
    check_close(result.metrics["weights"], steps_of_one(2, 4))


def kill_one(server: train.ParameterServer) -> None:
    context = train.context()
    worker = server.join()
    worker.pull()
    if context.rank == 1:
        os._exit(1)
    worker.step([np.ones(4, np.float32)])


@pytest.mark.differs(inline="ends the program: ranks have no process of their own")
@pytest.mark.parametrize("placement", ["actors", "workers"])
def test_a_rank_that_dies_ends_a_run_whose_ranks_wait_for_it(placement: str) -> None:
    server = one_weight(placement=placement)
    with pytest.raises(RankDiedError, match="rank 1 of 2 died"):
        train.run(kill_one, 2, config=server)


def hang_one(server: train.ParameterServer) -> None:
    context = train.context()
    worker = server.join()
    worker.pull()
    if context.rank == 1:
        threading.Event().wait()  # for ever
    worker.step([np.ones(4, np.float32)])


def pull_in_vain(server: train.ParameterServer) -> None:
    context = train.context()
    worker = server.join()
    worker.pull()
    if context.rank == 0:
        worker.push([np.ones(4, np.float32)])
        with pytest.raises(skate.exceptions.GetTimeoutError):
            worker.pull(timeout=0.05)
    context.barrier()
    context.report({"timed out": True})


@pytest.mark.parametrize("placement", ["actors", "workers"])
def test_a_pull_may_have_a_time_limit(placement: str) -> None:
    server = one_weight(placement=placement)
    assert train.run(pull_in_vain, 2, config=server).metrics == {"timed out": True}
    server.close()


@pytest.mark.differs(inline="hangs the program: ranks take turns in one process")
def test_a_rank_that_hangs_is_told_from_one_that_waits_for_it() -> None:
    with pytest.raises(CollectiveTimeoutError, match="rank 1 of 2 hangs"):
        train.run(hang_one, 2, config=one_weight(), deadline=0.5)


def with_torch(server: train.ParameterServer) -> None:
    import torch

    worker = server.join()
    weights = worker.pull()
    assert isinstance(weights["a"], torch.Tensor)
    sparse = torch.sparse_coo_tensor(
        [[1]], torch.ones(1, 2), (3, 2), check_invariants=False
    )
    weights = worker.step({"a": torch.ones(2), "b": sparse})
    train.context().report({name: t.tolist() for name, t in weights.items()})


def test_torch_tensors_come_back_as_tensors() -> None:
    torch = pytest.importorskip("torch")
    server = train.ParameterServer(
        {"a": torch.zeros(2), "b": torch.nn.Parameter(torch.zeros(3, 2))},
        optimizer=train.SGD(1.0),
    )
    assert train.run(with_torch, 1, config=server).metrics == {
        "a": [-1.0, -1.0],
        "b": [[0.0, 0.0], [-1.0, -1.0], [0.0, 0.0]],
    }
    server.close()
