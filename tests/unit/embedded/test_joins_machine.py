"""Joins of any processes, in any order: a join has its rank alone until it leaves."""

from __future__ import annotations

import os

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from skate import _core
from skate.engine.embedded.collectives import Collectives
from skate.engine.embedded.processes import Proc

RANKS = 2
BYTES = _core.group_segment_bytes(RANKS, 4096)

Join = tuple[Proc, int]


class Machine(RuleBasedStateMachine):
    """Each join asks until it has an answer for good, and leaves when it gives up."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = Collectives(self.make)
        self.numbers = 0
        self.epochs = [1, 1, 1]
        self.waiting: dict[Join, int] = {}  # its rank
        self.members: dict[Join, int] = {}
        self.leaving: dict[Join, int] = {}  # have left, and not told yet

    def make(self, name: str, size: int) -> int:
        fd = os.memfd_create(name)
        os.ftruncate(fd, size)
        return fd

    def known(self) -> dict[Join, int]:
        return {**self.waiting, **self.members, **self.leaving}

    def ask(self, join: Join, rank: int) -> None:
        (answer, _), fds = self.groups.join(*join, "g", rank, RANKS, BYTES)
        assert bool(fds) == (answer == "ok")
        self.waiting.pop(join, None)
        if answer == "ok":
            self.members[join] = rank
        elif answer == "waiting":
            group = self.groups._group_of(*join)
            # One that waits may not have heard yet that all have come to another.
            assert not any(
                taken == rank and self.groups._group_of(*other) is group
                for other, taken in self.waiting.items()
            )
            self.waiting[join] = rank
        else:
            assert answer == "taken"
            assert rank in {*self.waiting.values(), *self.members.values()}
            self.groups.leave(*join)  # as the process does whenever a join fails

    @rule(process=st.integers(0, 2), rank=st.integers(0, RANKS - 1))
    def begin(self, process: int, rank: int) -> None:
        self.numbers += 1
        self.ask((Proc(process + 2, self.epochs[process]), self.numbers), rank)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        join = data.draw(st.sampled_from(sorted(self.waiting)))
        self.ask(join, self.waiting[join])

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def begin_to_leave(self, data: st.DataObject) -> None:
        join = data.draw(st.sampled_from(sorted(self.members)))
        rank = self.leaving[join] = self.members.pop(join)
        group = self.groups._group_of(*join)
        assert group is not None
        _core.say_left_group(group.segment, rank)  # as the rank's own end does

    @precondition(lambda self: self.known())
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        join = data.draw(st.sampled_from(sorted(self.known())))
        for joins in (self.waiting, self.members, self.leaving):
            joins.pop(join, None)
        self.groups.leave(*join)
        self.groups.leave(*join)  # told again

    @rule(process=st.integers(0, 2))
    def die(self, process: int) -> None:
        proc = Proc(process + 2, self.epochs[process])
        self.epochs[process] += 1
        for joins in (self.waiting, self.members, self.leaving):
            for join in [join for join in joins if join[0] == proc]:
                del joins[join]
        self.groups.died(proc)

    @invariant()
    def the_supervisor_has_those_that_wait_or_are_members(self) -> None:
        known = {
            (proc, number): rank
            for proc, joins in self.groups._of.items()
            for number, (_, rank) in joins.items()
        }
        assert known == self.known()
        groups = {
            id(group)
            for joins in self.groups._of.values()
            for group, _ in joins.values()
        }
        assert len(self.groups) == len(groups)

    def teardown(self) -> None:
        for join in self.known():
            self.groups.leave(*join)
        assert len(self.groups) == 0
        assert not self.groups._of


TestJoins = Machine.TestCase
