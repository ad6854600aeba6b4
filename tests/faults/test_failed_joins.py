"""A join that fails leaves nothing behind: no rank, no memory."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from processes import children

import skate
from skate import collective
from skate.exceptions import CollectiveTimeoutError

pytest.importorskip("skate._core", reason="skate's C++ core is not built")


@pytest.fixture
def session() -> Iterator[None]:
    with skate.init("embedded", num_cpus=2):
        yield


@skate.remote(num_cpus=0)
class Rank:
    def join(self, world_size: int, rank: int, timeout: float) -> str:
        group = collective.create_group(world_size=world_size, name="g")
        try:
            self.group = group.join(rank, timeout=timeout)
        except CollectiveTimeoutError:
            return "timeout"
        return "joined"


def test_rank_whose_join_timed_out_is_free_for_another(session: None) -> None:
    first, second, third = (Rank.remote() for _ in range(3))
    assert skate.get(first.join.remote(3, 0, 0.05)) == "timeout"
    # Of another size, and the same rank in another process.
    assert skate.get(second.join.remote(2, 0, 0.05)) == "timeout"
    joins = [second.join.remote(2, 1, 10), third.join.remote(2, 0, 10)]
    assert skate.get(joins) == ["joined"] * 2


def test_joins_that_time_out_keep_no_descriptors(session: None) -> None:
    (supervisor,) = children(os.getpid())
    before = len(os.listdir(f"/proc/{supervisor}/fd"))
    for _ in range(20):
        with pytest.raises(CollectiveTimeoutError):
            collective.create_group(world_size=2).join(0, timeout=0.001)
    skate.available_resources()  # what was told before is taken by now
    assert len(os.listdir(f"/proc/{supervisor}/fd")) <= before + 5
