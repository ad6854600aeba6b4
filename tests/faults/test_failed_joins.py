"""A join that fails leaves nothing behind: no rank, no memory."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import children

import skate
from skate import collective
from skate.exceptions import CollectiveTimeoutError, RankDiedError

pytest.importorskip("skate._core", reason="skate's C++ core is not built")


@pytest.fixture
def session() -> Iterator[None]:
    with skate.init("embedded", num_cpus=2):
        yield


CPU = min(os.sched_getaffinity(0))


@skate.remote(num_cpus=0)
class Rank:
    def join(self, world_size: int, rank: int, timeout: float) -> str:
        group = collective.create_group(world_size=world_size, name="g")
        try:
            self.group = group.join(rank, timeout=timeout)
        except CollectiveTimeoutError:
            return "timeout"
        except ValueError:
            return "refused"
        return "joined"

    def join_in_threads(self, world_size: int, rank: int) -> list[str]:
        """What several joins of the same rank give that are made at a time."""
        with ThreadPoolExecutor(4) as pool:
            joins = [pool.submit(self.join, world_size, rank, 30) for _ in range(4)]
            return sorted(join.result() for join in joins)

    def join_without_room(self, world_size: int, rank: int) -> str:
        """Join, but have no address space for the group's memory."""
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        used = pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard))
        try:
            return self.join(world_size, rank, 30)
        except OSError:
            return "no room"
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    def meet(self) -> None:
        self.group.barrier(30)

    def close_behind_others(self) -> None:
        """Leave on a CPU that whoever hears of it takes away at once."""
        os.sched_setaffinity(0, {CPU})
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        self.group.close()

    def take_when_it_is_left(self, rank: int) -> str:
        os.sched_setaffinity(0, {CPU})
        with pytest.raises(RankDiedError):
            self.group.barrier(30)
        return self.join(2, rank, 30)


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


def test_a_member_that_joins_again_is_refused_and_stays_a_member(session: None) -> None:
    first, second = Rank.remote(), Rank.remote()
    joins = [first.join.remote(2, 0, 30), second.join.remote(2, 1, 30)]
    assert skate.get(joins) == ["joined"] * 2
    for _ in range(3):  # had the first one taken it out, a new group would be made
        assert skate.get(first.join.remote(2, 0, 30)) == "refused"
    skate.get([first.meet.remote(), second.meet.remote()])


def test_of_several_joins_of_a_rank_at_a_time_one_succeeds(session: None) -> None:
    first, second = Rank.remote(), Rank.remote()
    joins = first.join_in_threads.remote(2, 0)
    assert skate.get(second.join.remote(2, 1, 30)) == "joined"
    assert skate.get(joins) == ["joined", *["refused"] * 3]
    assert skate.get(first.join.remote(2, 0, 30)) == "refused"
    skate.get([first.meet.remote(), second.meet.remote()])


def test_ranks_are_told_of_one_whose_join_failed_when_all_were_there(
    session: None,
) -> None:
    first, second = Rank.remote(), Rank.remote()
    joins = [first.join.remote(2, 0, 30), second.join_without_room.remote(2, 1)]
    assert skate.get(joins) == ["joined", "no room"]
    with pytest.raises(RankDiedError, match="rank 1 left the group"):
        skate.get(first.meet.remote())


def times_woken(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("\nvoluntary_ctxt_switches:")[1].split()[0])


def test_a_rank_that_waits_for_many_asks_now_and_then(session: None) -> None:
    (supervisor,) = children(os.getpid())
    before = times_woken(supervisor)
    with pytest.raises(CollectiveTimeoutError):
        collective.create_group(world_size=32).join(0, timeout=2)
    assert times_woken(supervisor) - before < 300


def test_the_rank_of_one_that_closes_its_group_may_be_taken_at_once(
    session: None,
) -> None:
    first, second, third = (Rank.remote() for _ in range(3))
    joins = [first.join.remote(2, 0, 30), second.join.remote(2, 1, 30)]
    assert skate.get(joins) == ["joined"] * 2
    taken = second.take_when_it_is_left.remote(0)
    first.close_behind_others.remote()
    assert skate.get([taken, third.join.remote(2, 1, 30)]) == ["joined"] * 2
