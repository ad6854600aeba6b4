"""Asynchronous calls of a group: who may wait for them, and how they end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import CodeType
from typing import Any

import numpy as np
import pytest
from polling import wait_until

import skate
from skate.collective import Group, GroupSpec, Handle
from skate.exceptions import RankDiedError

pytestmark = pytest.mark.usefixtures("engine")


@skate.remote
class Other:
    """Rank 1; the test itself is rank 0."""

    def join(self) -> None:
        self.group = GroupSpec("pair", 2).join(1, 60)

    def allreduce(self) -> float:
        return float(self.group.allreduce(np.ones(4), timeout=60)[0])

    def allreduce_list(self) -> float:
        return float(self.group.allreduce([np.ones(4)], timeout=60)[0][0])

    def barrier(self) -> None:
        self.group.barrier(60)


def start_pair() -> tuple[Group, Any]:
    other = Other.remote()
    joined = other.join.remote()
    group = GroupSpec("pair", 2).join(0, 60)
    skate.get(joined)
    return group, other


def is_in(thread: threading.Thread, code: CodeType) -> bool:
    assert thread.ident is not None
    frame = sys._current_frames().get(thread.ident)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def is_waiting(thread: threading.Thread) -> bool:
    """Whether ``thread`` is in ``Handle.wait``."""
    return is_in(thread, Handle.wait.__code__)


def interrupt_when_waiting() -> threading.Thread:
    """Sends what Ctrl-C sends once the main thread waits for a handle."""

    def send() -> None:
        if wait_until(lambda: is_waiting(threading.main_thread())):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


class Waiting(threading.Thread):
    """Waits for a handle, and is in that when it has been made."""

    def __init__(self, handle: Handle) -> None:
        super().__init__(daemon=True)
        self._handle = handle
        self._results: list[Any] = []
        self.start()
        assert wait_until(lambda: is_waiting(self) or not self.is_alive())

    def run(self) -> None:
        self._results.append(self._handle.wait())

    def result(self) -> Any:
        self.join(60)
        (result,) = self._results
        return result


def test_a_wait_that_a_signal_ends_may_be_made_again() -> None:
    group, other = start_pair()
    x = np.ones(4)
    handle = group.allreduce(x, async_op=True)
    thread = interrupt_when_waiting()
    with pytest.raises(KeyboardInterrupt):
        handle.wait()
    thread.join()
    if not group.background:  # the call was the thread's that waited, and is over
        with pytest.raises(KeyboardInterrupt):
            handle.wait()
        return
    assert not handle.done()
    theirs = other.allreduce.remote()
    assert handle.wait() is x
    assert (x == 2).all()
    assert skate.get(theirs) == 2
    meeting = other.barrier.remote()
    group.barrier(60)
    skate.get(meeting)


def test_two_threads_that_wait_for_a_call_both_get_its_result() -> None:
    group, other = start_pair()
    x = np.ones(4)
    handle = group.allreduce(x, async_op=True)
    first = Waiting(handle)
    if group.background:
        second = Waiting(handle)
    else:  # the call is the first one's
        with pytest.raises(RuntimeError, match="one thread of a rank"):
            handle.wait()
    assert skate.get(other.allreduce.remote()) == 2
    assert first.result() is x
    assert (x == 2).all()
    if group.background:
        assert second.result() is x


def reduce_and_be_refused(group: Group) -> None:
    for call in (group.allreduce, lambda x: group.allreduce(x[0])):
        with pytest.raises(RuntimeError, match="one thread of a rank"):
            call([np.full(4, 100.0)])


def test_a_call_that_is_refused_changes_nothing_of_another_threads() -> None:
    group, other = start_pair()
    x = np.ones(4)
    first = threading.Thread(target=group.allreduce, args=([x],), daemon=True)
    first.start()
    assert wait_until(lambda: is_in(first, type(group._end).allreduce.__code__))
    reduce_and_be_refused(group)
    assert skate.get(other.allreduce_list.remote()) == 2
    first.join(60)
    assert (x == 2).all()


def test_a_call_that_is_refused_in_a_handler_changes_nothing() -> None:
    group, other = start_pair()
    x = np.ones(4)
    main = threading.main_thread()
    theirs = []

    def handle(number: int, frame: object) -> None:
        reduce_and_be_refused(group)
        theirs.append(other.allreduce_list.remote())

    def send() -> None:
        if wait_until(lambda: is_in(main, type(group._end).allreduce.__code__)):
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        thread = threading.Thread(target=send)
        thread.start()
        group.allreduce([x], timeout=60)
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert (x == 2).all()
    assert skate.get(theirs) == [2]


CALLS: dict[str, Callable[[Group], Handle]] = {
    "allreduce": lambda group: group.allreduce(np.ones(4), async_op=True),
    "recv": lambda group: group.recv(np.ones(4), 1, async_op=True),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_closing_a_group_ends_the_calls_that_wait(
    call: Callable[[Group], Handle],
) -> None:
    group, other = start_pair()
    handles = [call(group) for _ in range(3)]
    group.close()
    for handle in handles:
        with pytest.raises(RankDiedError) as caught:
            handle.wait()
        assert caught.value.rank == 0
    with pytest.raises(RankDiedError):
        skate.get(other.barrier.remote())


class SlowArray:
    """Shows its memory, to whoever asks, only when the test lets it."""

    def __init__(self) -> None:
        self._array = np.ones(4)
        self.asked, self.may_be_seen = threading.Event(), threading.Event()

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        self.asked.set()
        assert self.may_be_seen.wait(60)
        return self._array.__dlpack__(**options)


def test_a_call_that_is_made_while_the_group_closes_ends() -> None:
    group = GroupSpec("one", 1).join(0, 60)
    x = SlowArray()
    group.allreduce([x], async_op=True)
    assert not group.background or x.asked.wait(60)
    closing = threading.Thread(target=group.close)
    closing.start()
    join = threading.Thread.join.__code__
    assert wait_until(lambda: is_in(closing, join) or not closing.is_alive())
    handle = group.allreduce(np.ones(4), async_op=True)
    x.may_be_seen.set()
    closing.join()
    assert wait_until(handle.done) or not group.background
    with pytest.raises(RankDiedError):
        handle.wait()


def test_a_rank_that_has_closed_its_group_makes_no_more_calls() -> None:
    group, other = start_pair()
    theirs = other.barrier.remote()
    group.barrier(60)
    skate.get(theirs)
    group.close()
    theirs = other.barrier.remote()
    x = np.ones(4)
    calls: list[Callable[[], Any]] = [
        lambda: group.barrier(60),
        lambda: group.allreduce(x, timeout=60),
        lambda: group.send(x, 1, timeout=60),
        lambda: group.recv(x, 1, timeout=60),
        lambda: group.allreduce(x, async_op=True).wait(),
    ]
    for call in calls:
        with pytest.raises(RankDiedError) as caught:
            call()
        assert caught.value.rank == 0
    assert (x == 1).all()
    with pytest.raises(RankDiedError):
        skate.get(theirs)
