"""``skate.receiver``: what it returns, and how it runs on the loop of an actor.

The embedded engine has a loop of its own for it, see ``embedded/actor_worker.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


def check_wait(wait_s: Any) -> float | None:
    """What a receiver has returned, in seconds."""
    if wait_s is None:
        return None
    seconds = float(wait_s) if hasattr(type(wait_s), "__float__") else math.nan
    if not seconds >= 0:
        raise ValueError(
            f"a receiver returned {wait_s!r}; it must return the number of seconds "
            "after which it wants to be called again, or None."
        )
    return seconds


class LoopCall:
    """A ``ReceivedCall`` that answers by a future of the actor's event loop."""

    __slots__ = ("args", "future", "kwargs", "method")

    def __init__(
        self,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        future: asyncio.Future[Any],
    ) -> None:
        self.method = method
        self.args = args
        self.kwargs = kwargs
        self.future = future

    @property
    def wanted(self) -> bool:
        return not self.future.cancelled()

    def answer(self, value: Any) -> None:
        if not self.future.done():  # else it was cancelled
            self.future.set_result(value)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class LoopReceiver:
    """Gives a receiver the calls that have come, on the loop's thread."""

    def __init__(self, instance: Any, name: str) -> None:
        self._receive = getattr(instance, name)
        self._calls: list[LoopCall] = []
        self._timer: asyncio.TimerHandle | None = None

    def accept(
        self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> asyncio.Future[Any]:
        """Pass on a call; the future ends when the receiver has answered it."""
        import asyncio  # it takes a while, and every worker imports this module

        loop = asyncio.get_running_loop()
        call = LoopCall(method, args, kwargs, loop.create_future())
        self._calls.append(call)
        self._schedule(loop, 0.0)
        return call.future

    def _schedule(self, loop: asyncio.AbstractEventLoop, wait_s: float) -> None:
        # Even without a wait it takes a turn of the loop, so that calls which arrived
        # together are received together.
        at = loop.time() + wait_s
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = loop.call_at(at, self._run, loop)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        calls, self._calls = self._calls, []
        try:
            wait_s = check_wait(self._receive(calls))
        except Exception as error:
            for call in calls:
                call.fail(error)
            return
        if wait_s is not None:
            self._schedule(loop, wait_s)
