"""A queue that tasks, actors and the driver share: one actor, with Ray's interface."""

from __future__ import annotations

import math
import os
import queue
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple

import skate

__all__ = ["Empty", "Full", "Queue"]

# Each call that waits is one of the actor's, except on the embedded engine: by default
# 1,000 of them would keep out those that they wait for.
_MAX_CALLS = 1_000_000
_MIN_TIDY = 64  # calls that wait


class Empty(queue.Empty):
    """``get`` found no item, in time or at all. Also a ``queue.Empty``."""


class Full(queue.Full):
    """``put`` found no room, in time or at all. Also a ``queue.Full``."""


class Queue:
    """First in, first out. Pass it to tasks and actors; all see the same items.

    >>> queue = Queue(maxsize=100)
    >>> queue.put(1)
    >>> queue.get()
    1

    The queue lives in an actor, and ends with the last copy of it or ``shutdown``.

    Args:
        maxsize: how many items fit; 0 is no limit.
        actor_options: options of the actor, such as ``{"num_cpus": 1}`` or a name.
    """

    def __init__(
        self, maxsize: int = 0, actor_options: Mapping[str, Any] | None = None
    ) -> None:
        self.maxsize = maxsize
        options = {"max_concurrency": _MAX_CALLS, **(actor_options or {})}
        actor_class = skate.remote(_QueueActor).options(**options)
        self.actor: skate.ActorHandle[Any] | None = actor_class.remote(maxsize)

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """How many items are in the queue."""
        size: int = skate.get(self._live().qsize.remote())
        return size

    def qsize(self) -> int:
        """The same as ``size``."""
        return self.size()

    def empty(self) -> bool:
        """True if there is no item now."""
        return self.size() == 0

    def full(self) -> bool:
        """True if there is no room now."""
        return 0 < self.maxsize <= self.size()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add ``item``; waits for room.

        Args:
            item: anything that can be pickled; a ref stands for its value.
            block: wait for room; False raises at once.
            timeout: seconds to wait; None waits for ever.

        Raises:
            Full: there is no room, or was none within ``timeout`` seconds.
            ValueError: ``timeout`` is negative.
        """
        ref = self._put(item, block, timeout)
        try:
            done = skate.get(ref)
        except BaseException:
            _cancel(ref)
            raise
        self._check_put(done, timeout)

    async def put_async(
        self, item: Any, block: bool = True, timeout: float | None = None
    ) -> None:
        """``put`` for async code; see there."""
        ref = self._put(item, block, timeout)
        try:
            done = await ref
        except BaseException:
            _cancel(ref)
            raise
        self._check_put(done, timeout)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The oldest item; waits for one.

        Args:
            block: wait for an item; False raises at once.
            timeout: seconds to wait; None waits for ever.

        Raises:
            Empty: there is no item, or was none within ``timeout`` seconds.
            ValueError: ``timeout`` is negative.
        """
        ticket, ref = self._get(block, timeout)
        try:
            answer = skate.get(ref)
        except BaseException:  # also of a signal's handler
            self._give_up_get(ticket, ref)
            raise
        return _item_of(answer, timeout)

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        """``get`` for async code; see there."""
        ticket, ref = self._get(block, timeout)
        try:
            answer = await ref
        except BaseException:  # such as the CancelledError of asyncio.wait_for
            self._give_up_get(ticket, ref)
            raise
        return _item_of(answer, timeout)

    def put_nowait(self, item: Any) -> None:
        """``put(item, block=False)``."""
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        """``get(block=False)``."""
        return self.get(block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Add all ``items`` in order, in one call, or none of them.

        Raises:
            Full: they do not all fit.
        """
        if not isinstance(items, Iterable):
            raise TypeError(f"items must be iterable, not {items!r}.")
        batch = list(items)
        if not skate.get(self._live().put_batch.remote(batch)):
            raise Full(
                f"{len(batch)} items do not fit into a queue for {self.maxsize} that "
                "has some already; none was added."
            )

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """The ``num_items`` oldest items, in one call.

        Raises:
            Empty: there are not as many; none was taken.
        """
        if isinstance(num_items, bool) or not isinstance(num_items, int):
            raise TypeError(f"num_items must be an integer, not {num_items!r}.")
        if num_items < 0:
            raise ValueError(f"num_items must be zero or more, not {num_items!r}.")
        items: list[Any] | None = skate.get(self._live().get_batch.remote(num_items))
        if items is None:
            raise Empty(f"the queue has fewer than {num_items} items; none was taken.")
        return items

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """End the actor. Calls that wait for it fail with ActorDiedError.

        Args:
            force: now; else after the calls that were made before this one.
            grace_period_s: how many seconds to wait for those.
        """
        actor, self.actor = self.actor, None
        if actor is None:
            return
        if not force:
            skate.wait([actor.qsize.remote()], timeout=grace_period_s)
        skate.kill(actor)

    # inner --------------------------------------------------------------------------

    def _live(self) -> skate.ActorHandle[Any]:
        if self.actor is None:
            raise RuntimeError("this queue was shut down; make a new one.")
        return self.actor

    # Any: awaitable, and what skate.get takes; a method's type is not known.
    def _put(self, item: Any, block: bool, timeout: float | None) -> Any:
        return self._live().put.remote(item, _patience(block, timeout))

    def _get(self, block: bool, timeout: float | None) -> tuple[bytes, Any]:
        ticket = os.urandom(8)
        return ticket, self._live().get.remote(_patience(block, timeout), ticket)

    def _give_up_get(self, ticket: bytes, ref: skate.ObjectRef[Any]) -> None:
        """Have the actor forget the call; if that has an item by then, put it back.

        To cancel it would lose an item that comes at the same moment.
        """
        actor = self.actor
        if actor is None:
            return  # it has been shut down, which the call says

        def put_back(answer: Future[tuple[Any, ...]]) -> None:
            if answer.exception() is None and answer.result():
                actor.put_back.remote(*answer.result())

        with suppress(skate.exceptions.SkateError):  # the session has ended
            actor.forget.remote(ticket)
            ref.future().add_done_callback(put_back)

    def _check_put(self, done: bool, timeout: float | None) -> None:
        if not done:
            within = f" within {timeout} s" if timeout else ""
            raise Full(f"the queue has {self.maxsize} items; no room came{within}.")


def _patience(block: bool, timeout: float | None) -> float | None:
    """Seconds to wait: None is for ever."""
    if not block:
        return 0
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout must be zero or more seconds, not {timeout!r}.")
    return None if timeout is None else float(timeout)


def _cancel(ref: skate.ObjectRef[Any]) -> None:
    with suppress(skate.exceptions.SkateError):  # the session has ended
        skate.cancel(ref)


def _item_of(answer: tuple[Any, ...], timeout: float | None) -> Any:
    if not answer:
        within = f" within {timeout} s" if timeout else ""
        raise Empty(f"the queue is empty; no item came{within}.")
    return answer[0]


class _Waiting(NamedTuple):
    call: skate.ReceivedCall
    until: float  # of time.monotonic()
    ticket: bytes  # by which whoever waits may give up


class _QueueActor:
    """The items. Answers instead of raising: full and empty are no failures here.

    It takes in its calls itself: whoever waits may give up, or die, and an item is for
    those that still want it.
    """

    def __init__(self, maxsize: int) -> None:
        self._maxsize = maxsize if maxsize > 0 else math.inf
        self._items: deque[Any] = deque()
        # Calls that wait for an item or for room, longest first. Those that nobody
        # wants any more stay until it is their turn, or until the lines have doubled.
        self._gets: deque[_Waiting] = deque()
        self._puts: deque[_Waiting] = deque()
        self._due = math.inf  # no call's time is up before this
        self._tidy_at = _MIN_TIDY

    # So that handles have these methods; what they do is below.

    def qsize(self) -> int:
        raise NotImplementedError

    def put(self, item: Any, timeout: float | None) -> bool:
        """True if it was added in time."""
        raise NotImplementedError

    def put_back(self, item: Any) -> None:
        """The next item again: whoever got it was gone."""

    def forget(self, ticket: bytes) -> None:
        """Nobody waits any more for the call of ``get`` with that ticket."""

    def get(self, timeout: float | None, ticket: bytes) -> tuple[Any, ...]:
        """The item, if one came in time."""
        raise NotImplementedError

    def put_batch(self, items: list[Any]) -> bool:
        raise NotImplementedError

    def get_batch(self, num_items: int) -> list[Any] | None:
        raise NotImplementedError

    @skate.receiver
    def receive(self, calls: Sequence[skate.ReceivedCall]) -> float | None:
        now = time.monotonic()
        for call in calls:
            self._take(call, now)
            self._pass_on()
        if now >= self._due or len(self._gets) + len(self._puts) >= self._tidy_at:
            self._tidy(now)
        return self._due - now

    def _take(self, call: skate.ReceivedCall, now: float) -> None:
        items, args = self._items, call.args
        if call.method == "qsize":
            call.answer(len(items))
        elif call.method == "put":
            if len(items) < self._maxsize:
                items.append(args[0])
                call.answer(True)
            elif args[1] == 0:
                call.answer(False)
            else:
                self._wait(call, self._puts, args[1], b"", now)
        elif call.method == "get":
            if items:
                self._give(call)
            elif args[0] == 0:
                call.answer(())
            else:
                self._wait(call, self._gets, args[0], args[1], now)
        elif call.method == "forget":
            for waiting in self._gets:
                if waiting.ticket == args[0]:
                    self._gets.remove(waiting)
                    waiting.call.answer(())
                    break
            call.answer(None)
        elif call.method == "put_back":
            items.appendleft(args[0])
            call.answer(None)
        elif call.method == "put_batch":
            fits = len(items) + len(args[0]) <= self._maxsize
            if fits:
                items.extend(args[0])
            call.answer(fits)
        elif args[0] <= len(items):
            call.answer([items.popleft() for _ in range(args[0])])
        else:
            call.answer(None)

    def _wait(
        self,
        call: skate.ReceivedCall,
        line: deque[_Waiting],
        timeout: float | None,
        ticket: bytes,
        now: float,
    ) -> None:
        until = math.inf if timeout is None else now + timeout
        line.append(_Waiting(call, until, ticket))
        self._due = min(self._due, until)

    def _pass_on(self) -> None:
        """Items to those that wait for them, and room to those that wait for that."""
        items = self._items
        while (items and self._gets) or (self._puts and len(items) < self._maxsize):
            if items and self._gets:
                self._give(self._gets.popleft().call)
            else:
                call = self._puts.popleft().call
                if call.wanted:
                    items.append(call.args[0])
                call.answer(True)

    def _give(self, call: skate.ReceivedCall) -> None:
        call.answer((self._items.popleft(),) if call.wanted else ())

    def _tidy(self, now: float) -> None:
        """Answer the calls whose time is up, and those that nobody wants any more."""
        for line, nothing in (self._gets, ()), (self._puts, False):
            waiting = list(line)
            line.clear()
            for one in waiting:
                if one.until > now and one.call.wanted:
                    line.append(one)
                else:
                    one.call.answer(nothing)
        waits = [*self._gets, *self._puts]
        self._due = min((one.until for one in waits), default=math.inf)
        self._tidy_at = max(_MIN_TIDY, 2 * len(waits))
