"""Groups whose session ends, or that are dropped: no call hangs, and nothing stays."""

from __future__ import annotations

import contextlib
import gc
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from polling import wait_until
from processes import children
from programs import run

import skate
from skate.collective import Group, GroupSpec, create_group

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


def test_a_program_ends_although_a_call_waits_at_its_end() -> None:
    program = """
    handle = group.recv(np.ones(4), 1, async_op=True)
    print("the end")
    """
    assert "the end" in run(PAIR + textwrap.dedent(program), seconds=30)


def test_an_asynchronous_call_in_a_forked_child_is_refused() -> None:
    program = """
    import os
    group.send(np.ones(4), 1, async_op=True).wait()
    child = os.fork()
    if child == 0:
        try:
            group.send(np.ones(4), 1, async_op=True).wait()
        except skate.exceptions.EngineError as error:
            print(error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    """
    printed = run(PAIR + textwrap.dedent(program), seconds=30)
    assert "this process was forked from one that is a rank" in printed


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


def kept_groups() -> int:
    """Whose memory the supervisor keeps: once each, also while it is being sent."""
    (supervisor,) = children(os.getpid())
    kept = set()
    for path in Path(f"/proc/{supervisor}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed just now
            if "skate-group" in os.readlink(path):
                kept.add(path.stat().st_ino)
    return len(kept)


MESSAGES, MESSAGE_BYTES = 15, 20 << 20  # more than is kept when it is free


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

    def send_and_drop(self) -> None:
        (group,) = self.groups
        for number in range(MESSAGES):
            group.send(np.full(MESSAGE_BYTES, number + 1, np.uint8), 1)
        self.groups.clear()
        del group
        gc.collect()

    def receive(self) -> list[tuple[int, int]]:
        x = np.empty(MESSAGE_BYTES, np.uint8)
        received = []
        for _ in range(MESSAGES):
            self.groups[-1].recv(x, 0, timeout=30)
            received.append((int(x.min()), int(x.max())))
        return received


def join_one_after_the_other(*ranks: Any) -> None:
    before = kept_groups()
    first = ranks[0].join.remote()
    assert wait_until(lambda: kept_groups() > before)
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


def test_messages_of_a_rank_that_has_dropped_its_group_are_received(
    session: None,
) -> None:
    sender, receiver = Rank.remote(0), Rank.remote(1)
    assert all(skate.get([sender.join.remote(), receiver.join.remote()]))
    skate.get(sender.send_and_drop.remote())
    expected = [(number, number) for number in range(1, MESSAGES + 1)]
    assert skate.get(receiver.receive.remote()) == expected


def use_and_drop(asynchronously: bool) -> None:
    group = create_group(1).join(0)
    x = group.empty(1 << 16, np.uint8)
    x[...] = 1
    group.allreduce(x, async_op=asynchronously)


@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_group_that_is_dropped_is_left(session: None, asynchronously: bool) -> None:
    for _ in range(20):
        use_and_drop(asynchronously)

    def all_left() -> bool:
        gc.collect()  # a handle and its group hold each other
        return kept_groups() == 0

    assert wait_until(all_left)


def test_a_name_is_free_when_its_group_is_dropped(session: None) -> None:
    for _ in range(3):
        group = create_group(1, name="one").join(0, 10)
        group.barrier(10)
        del group


def test_a_forked_child_that_drops_a_group_does_not_leave_it(session: None) -> None:
    group = create_group(1, name="one").join(0, 10)
    child = os.fork()
    if child == 0:
        del group
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(ValueError, match="has joined already, in this process"):
        create_group(1, name="one").join(0, 10)
    assert kept_groups() == 1
    group.barrier(10)
