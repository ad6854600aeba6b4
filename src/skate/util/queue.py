"""A queue that tasks, actors and the driver share: one actor, with Ray's interface."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterable, Mapping
from typing import Any

import skate

__all__ = ["Empty", "Full", "Queue"]


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
        actor_class = skate.remote(_QueueActor).options(**(actor_options or {}))
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
        self._check_put(skate.get(self._put(item, block, timeout)), timeout)

    async def put_async(
        self, item: Any, block: bool = True, timeout: float | None = None
    ) -> None:
        """``put`` for async code; see there."""
        self._check_put(await self._put(item, block, timeout), timeout)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The oldest item; waits for one.

        Args:
            block: wait for an item; False raises at once.
            timeout: seconds to wait; None waits for ever.

        Raises:
            Empty: there is no item, or was none within ``timeout`` seconds.
            ValueError: ``timeout`` is negative.
        """
        return _item_of(skate.get(self._get(block, timeout)), timeout)

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        """``get`` for async code; see there."""
        return _item_of(await self._get(block, timeout), timeout)

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

    def _get(self, block: bool, timeout: float | None) -> Any:
        return self._live().get.remote(_patience(block, timeout))

    def _check_put(self, done: bool, timeout: float | None) -> None:
        if not done:
            within = f" within {timeout} s" if timeout else ""
            raise Full(f"the queue has {self.maxsize} items; no room came{within}.")


def _patience(block: bool, timeout: float | None) -> float | None:
    """Seconds to wait: None is for ever."""
    if not block:
        return 0
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout must be zero or more seconds, not {timeout!r}.")
    return timeout


def _item_of(answer: tuple[Any, ...], timeout: float | None) -> Any:
    if not answer:
        within = f" within {timeout} s" if timeout else ""
        raise Empty(f"the queue is empty; no item came{within}.")
    return answer[0]


class _QueueActor:
    """The items. Answers instead of raising: full and empty are no failures here."""

    def __init__(self, maxsize: int) -> None:
        self._items: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    def qsize(self) -> int:
        return self._items.qsize()

    async def put(self, item: Any, timeout: float | None) -> bool:
        if not self._items.full():
            self._items.put_nowait(item)
            return True
        if timeout == 0:
            return False
        try:
            await asyncio.wait_for(self._items.put(item), timeout)
        except asyncio.TimeoutError:
            return False
        return True

    async def get(self, timeout: float | None) -> tuple[Any, ...]:
        if not self._items.empty():
            return (self._items.get_nowait(),)
        if timeout == 0:
            return ()
        try:
            return (await asyncio.wait_for(self._items.get(), timeout),)
        except asyncio.TimeoutError:
            return ()

    def put_batch(self, items: list[Any]) -> bool:
        room = self._items.maxsize - self._items.qsize()
        if self._items.maxsize > 0 and room < len(items):
            return False
        for item in items:
            self._items.put_nowait(item)
        return True

    def get_batch(self, num_items: int) -> list[Any] | None:
        if num_items > self._items.qsize():
            return None
        return [self._items.get_nowait() for _ in range(num_items)]
