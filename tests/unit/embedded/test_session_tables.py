"""What the supervisor keeps: groups, placement groups and notes, and for how long."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from skate import _core
from skate._placement import GroupInfo
from skate.engine.embedded.collectives import Collectives
from skate.engine.embedded.notes import Notes
from skate.engine.embedded.placements import Placements
from skate.engine.embedded.processes import Proc

SEGMENT_BYTES = _core.group_segment_bytes(2, 4096)
A, B, C = Proc(2, 1), Proc(3, 1), Proc(4, 1)


class Memory:
    """Segments that were made, and those of them that are still open."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def make(self, name: str, size: int) -> int:
        fd = os.memfd_create(name)
        os.ftruncate(fd, size)
        self.made.append(fd)
        return fd

    def open(self) -> int:
        count = 0
        for fd in set(self.made):
            try:
                os.fstat(fd)
            except OSError:
                continue
            count += 1
        return count


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def groups(memory: Memory) -> Iterator[Collectives]:
    groups = Collectives(memory.make)
    yield groups
    for proc in (A, B, C):
        groups.died(proc)
    assert len(groups) == memory.open() == 0
    assert not groups._of


def join(
    groups: Collectives, proc: Proc, rank: int, size: int = 2, number: int = 1
) -> str:
    answer, _ = groups.join(proc, number, "g", rank, size, SEGMENT_BYTES)
    return str(answer[0])


def both_join(groups: Collectives, number: int = 1) -> None:
    assert join(groups, A, 0, number=number) == "waiting"
    answer, fds = groups.join(B, number, "g", 1, 2, SEGMENT_BYTES)
    assert answer == ("ok", [tuple(A), tuple(B)])
    assert len(fds) == 1
    assert join(groups, A, 0, number=number) == "ok"


def test_a_groups_memory_goes_when_every_rank_has_left_or_died(
    groups: Collectives, memory: Memory
) -> None:
    both_join(groups)
    groups.leave(A, 1)
    assert memory.open() == 1
    groups.died(B)
    assert memory.open() == 0


def test_a_rank_that_dies_before_all_have_joined_makes_room(
    groups: Collectives, memory: Memory
) -> None:
    assert join(groups, A, 0) == "waiting"
    assert join(groups, C, 0) == "taken"
    groups.died(A)
    assert memory.open() == 0
    assert join(groups, C, 0) == "waiting"
    assert join(groups, B, 1) == "ok"


def test_the_name_of_a_group_is_used_again_by_those_who_have_left_it(
    groups: Collectives, memory: Memory
) -> None:
    both_join(groups)
    groups.died(B)
    assert join(groups, C, 1) == "waiting"  # in B's place: a new group
    groups.leave(A, 1)
    assert join(groups, A, 0, number=2) == "ok"
    assert memory.open() == 1


def test_a_join_that_failed_long_ago_ends_no_later_one(groups: Collectives) -> None:
    assert join(groups, A, 0, number=1) == "waiting"
    groups.leave(A, 1)
    both_join(groups, number=2)
    groups.leave(A, 1)  # told again, or late
    assert join(groups, A, 0, number=2) == "ok"


def test_of_joins_of_one_process_only_that_which_has_the_rank_can_free_it(
    groups: Collectives, memory: Memory
) -> None:
    assert join(groups, A, 0, number=1) == "waiting"
    assert join(groups, A, 0, number=2) == "taken"
    groups.leave(A, 2)  # it was refused
    assert join(groups, C, 0) == "taken"
    groups.leave(A, 1)
    assert memory.open() == 0
    assert join(groups, C, 0) == "waiting"


def test_a_join_stays_with_the_group_that_it_is_in(groups: Collectives) -> None:
    assert join(groups, A, 0) == "waiting"
    assert join(groups, B, 1) == "ok"
    groups.leave(B, 1)
    assert join(groups, B, 1, number=2) == "waiting"  # in a new group
    assert join(groups, A, 0) == "ok"  # in the old one, where B has been


def test_a_later_user_of_a_place_is_another_process(groups: Collectives) -> None:
    both_join(groups)
    groups.died(A)
    again = Proc(A.index, A.epoch + 1)
    assert join(groups, again, 0) == "waiting"
    groups.died(again)


def test_a_process_may_be_several_ranks(groups: Collectives, memory: Memory) -> None:
    assert join(groups, A, 0, number=1) == "waiting"
    assert join(groups, A, 1, number=2) == "ok"
    groups.leave(A, 1)
    assert memory.open() == 1
    groups.leave(A, 2)
    assert memory.open() == 0


def test_ranks_that_disagree_about_the_size_are_told(groups: Collectives) -> None:
    assert join(groups, A, 0) == "waiting"
    assert join(groups, B, 1, size=3) == "mismatch"


INFO = GroupInfo("some", "PACK", ({"CPU": 1.0},), "PENDING", "")


def test_removed_placement_groups_are_known_as_such_and_not_kept() -> None:
    created: set[str] = set()
    table = Placements("cafe", created.__contains__)
    first = table.new_id()
    table.add(first, INFO)
    created.add(first)
    for _ in range(5000):
        group = table.new_id()
        table.add(group, INFO)
        assert table.remove(group)
        assert not table.remove(group)
    assert len(table) <= 1001
    created_info, removed_info = table.get(first), table.get(group)
    assert created_info is not None
    assert removed_info is not None
    assert (created_info.state, removed_info.state) == ("CREATED", "REMOVED")
    assert removed_info.name == "some"
    forgotten = table.get(f"cafe{2:012x}")
    assert forgotten is not None
    assert forgotten.state == "REMOVED"
    assert next(iter(table.all())) == first  # oldest first
    for other in ("cafe", "cafe0", f"beef{1:012x}", f"cafe{9999:012x}", "", "cafe?"):
        assert table.get(other) is None


def test_notes_are_the_newest_of_so_many_bytes() -> None:
    notes = Notes()
    for number in range(1, 3000):
        notes.keep(number, f"note {number}")
    assert len(notes) <= 1000
    assert notes.get(2999) == "note 2999"
    assert notes.get(1) == ""
    for number in range(1, 100):
        notes.keep(number, "x" * (5 << 20))
    assert sum(len(notes.get(number)) for number in range(100)) <= 16 << 20
    assert notes.get(99).startswith("x")
    assert "characters left out" in notes.get(99)


def test_the_same_reason_is_kept_once() -> None:
    notes = Notes()
    numbers = {notes.number_of("no process can be had") for _ in range(1000)}
    assert len(numbers) == len(notes) == 1
    assert notes.get(numbers.pop()) == "no process can be had"
    for number in range(3000):
        notes.number_of(f"reason {number}")
    assert len(notes) == len(notes._numbers) == 1000
