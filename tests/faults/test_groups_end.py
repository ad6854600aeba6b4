"""Groups whose session ends, or that are dropped: no call hangs, and nothing stays."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from polling import wait_until
from processes import children
from programs import run

import skate
from skate.collective import Group, GroupSpec

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

PAIR = """
import sys, threading
import numpy as np
import skate
from skate.collective import GroupSpec

@skate.remote
class Other:
    def join(self):
        self.group = GroupSpec("pair", 2).join(1, 60)

skate.init("embedded", num_cpus=2)
other = Other.remote()
joined = other.join.remote()
group = GroupSpec("pair", 2).join(0, 60)
skate.get(joined)
"""


@pytest.mark.parametrize(
    "call",
    [
        "group.allreduce(np.ones(4), async_op=True)",
        "group.recv(np.ones(4), 1, async_op=True)",
    ],
)
def test_a_program_ends_although_a_call_waits_at_its_shutdown(call: str) -> None:
    program = f"""
    handle = {call}
    skate.shutdown()
    for end in (handle.wait, lambda: group.barrier(60)):
        try:
            end()
        except skate.exceptions.EngineDiedError as error:
            print(error)
    """
    printed = run(PAIR + textwrap.dedent(program), seconds=30)
    assert printed.count("group 'pair', rank 0 of 2: the session has ended") == 2


@pytest.fixture
def session() -> Iterator[None]:
    with skate.init("embedded", num_cpus=2):
        yield


def descriptors() -> int:
    """That the supervisor has; each group is one."""
    (supervisor,) = children(os.getpid())
    return len(os.listdir(f"/proc/{supervisor}/fd"))


@skate.remote(num_cpus=0)
class Rank:
    """A rank of several groups that have one name."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.groups: list[Group] = []

    def join(self) -> bool:
        self.groups.append(GroupSpec("same", 2).join(self.rank, 10))
        return True

    def close(self, which: int) -> None:
        self.groups[which].close()

    def meet(self) -> None:
        self.groups[-1].barrier(30)


def join_one_after_the_other(*ranks: Any) -> None:
    before = descriptors()
    first = ranks[0].join.remote()
    assert wait_until(lambda: descriptors() > before)  # for the group's memory
    assert skate.get([ranks[1].join.remote(), first]) == [True, True]


def test_closing_a_group_leaves_no_other_of_its_name(session: None) -> None:
    first, second = (Rank.remote(rank) for rank in range(2))
    both: list[Any] = [first, second]
    assert all(skate.get([rank.join.remote() for rank in both]))
    skate.get(second.close.remote(0))
    join_one_after_the_other(second, first)  # which is in the old one, too
    skate.get(first.close.remote(1))
    join_one_after_the_other(first, second)
    skate.get([rank.meet.remote() for rank in both])
