"""Collective groups, as ``skate.collective`` and ``skate.train`` use them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from helpers import identity

import skate
from skate._runtime import current
from skate.exceptions import (
    CollectiveTimeoutError,
    RankDiedError,
    ShapeMismatchError,
)

pytestmark = pytest.mark.usefixtures("engine")


@skate.remote
class Rank:
    def __init__(self, rank: int) -> None:
        self.rank = rank

    def join(self, name: str, size: int, timeout: float | None = 60) -> tuple[int, int]:
        self.group = current().join_group(name, self.rank, size, timeout)
        return self.group.rank, self.group.world_size

    def allreduce(
        self, op: str, dtype: str, shape: Any, own: bool, rounds: int = 1
    ) -> np.ndarray:
        x = self.group.empty(shape, dtype) if own else np.empty(shape, dtype)
        for _ in range(rounds):
            x[...] = self.rank + 1
            result = self.group.allreduce(x, op, timeout=60)
            assert result is x
        return x.copy()

    def broadcast(self, root: int) -> np.ndarray:
        x = np.full(10, float(self.rank))
        return self.group.broadcast(x, root, timeout=60).copy()

    def barrier(self, timeout: float | None = 60) -> None:
        self.group.barrier(timeout)

    def close(self) -> None:
        self.group.close()
        self.group.close()


def start_ranks() -> list[Any]:
    ranks = [Rank.remote(rank) for rank in range(3)]
    joined = skate.get([rank.join.remote("test", 3) for rank in ranks])
    assert joined == [(0, 3), (1, 3), (2, 3)]
    return ranks


@pytest.mark.parametrize("own", [True, False], ids=["group", "ordinary"])
def test_allreduce_gives_every_rank_the_reduction(own: bool) -> None:
    ranks = start_ranks()
    values = {"sum": 6, "mean": 2, "max": 3, "min": 1}
    dtypes = ["float32", "float64", "float16", "int64"]
    for dtype, op in itertools.product(dtypes, values):
        if op == "mean" and dtype == "int64":
            continue  # it would have to be rounded
        calls = [r.allreduce.remote(op, dtype, (3, 5), own) for r in ranks]
        for result in skate.get(calls):
            np.testing.assert_array_equal(result, np.full((3, 5), values[op], dtype))


def test_what_cannot_be_reduced_is_refused_without_waiting() -> None:
    ranks = start_ranks()
    for op, dtype, error in [
        ("mean", "int64", TypeError),
        ("sum", "U3", TypeError),
        ("mid", "f4", ValueError),
    ]:
        with pytest.raises(error):
            skate.get(ranks[0].allreduce.remote(op, dtype, 3, False))
    skate.get([rank.barrier.remote() for rank in ranks])


def test_allreduce_of_a_large_array_many_times() -> None:
    ranks = start_ranks()
    calls = [r.allreduce.remote("sum", "float32", 300_000, True, 5) for r in ranks]
    for result in skate.get(calls):
        assert (result == 6).all()


def test_broadcast_gives_every_rank_the_array_of_the_root() -> None:
    ranks = start_ranks()
    for result in skate.get([rank.broadcast.remote(1) for rank in ranks]):
        np.testing.assert_array_equal(result, np.ones(10))


def test_a_barrier_holds_until_all_are_there() -> None:
    ranks = start_ranks()
    early = [rank.barrier.remote() for rank in ranks[:2]]
    assert skate.wait(early, timeout=0.05) == ([], early)
    skate.get([*early, ranks[2].barrier.remote()])


def test_different_shapes_are_an_error_on_every_rank() -> None:
    ranks = start_ranks()
    refs = [
        r.allreduce.remote("sum", "float32", i + 1, False) for i, r in enumerate(ranks)
    ]
    for ref in refs:
        with pytest.raises(ShapeMismatchError):
            skate.get(ref)
    skate.get([rank.barrier.remote() for rank in ranks])


def test_different_operations_are_an_error_on_every_rank() -> None:
    ranks = start_ranks()
    refs = [
        rank.allreduce.remote(op, "float32", 4, False)
        for rank, op in zip(ranks, ["sum", "sum", "max"], strict=True)
    ]
    for ref in refs:
        with pytest.raises(ShapeMismatchError):
            skate.get(ref)


def test_a_timeout_names_the_ranks_that_are_missing() -> None:
    ranks = start_ranks()
    with pytest.raises(CollectiveTimeoutError) as caught:
        skate.get(ranks[1].barrier.remote(0.05))
    assert caught.value.missing_ranks == (0, 2)
    for rank in ranks:  # who came cannot be called back: the group has ended
        with pytest.raises(CollectiveTimeoutError):
            skate.get(rank.barrier.remote())


def test_the_death_of_a_rank_is_an_error_on_the_others() -> None:
    ranks = start_ranks()
    waiting = [rank.barrier.remote(None) for rank in ranks[:2]]
    assert skate.wait(waiting, timeout=0.05)[0] == []
    skate.kill(ranks[2])
    for ref in waiting:
        with pytest.raises(RankDiedError) as caught:
            skate.get(ref)
        assert caught.value.rank == 2


def test_joining_with_another_world_size_is_an_error() -> None:
    _ranks = start_ranks()
    with pytest.raises(ShapeMismatchError):
        skate.get(Rank.remote(0).join.remote("test", 4))


def test_joining_waits_for_all_ranks_and_may_time_out() -> None:
    lonely = Rank.remote(0)
    with pytest.raises(CollectiveTimeoutError) as caught:
        skate.get(lonely.join.remote("lonely", 2, 0.05))
    assert caught.value.missing_ranks == (1,)
    assert skate.get(identity.remote(1)) == 1


def test_a_group_may_be_left_twice_and_its_name_used_again() -> None:
    ranks = start_ranks()
    skate.get([rank.barrier.remote() for rank in ranks])
    skate.get([rank.close.remote() for rank in ranks])
    skate.get([rank.join.remote("test", 3) for rank in ranks])
    skate.get([rank.barrier.remote() for rank in ranks])
