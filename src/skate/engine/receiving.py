"""``skate.receiver``: what it returns, and how it runs on the loop of an actor.

The embedded engine has a loop of its own for it, see ``embedded/actor_worker.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .actor_methods import ActorExit

if TYPE_CHECKING:
    import asyncio


def check_wait(wait_s: Any) -> float | None:
    """What a receiver has returned, in seconds."""
    if wait_s is None:
        return None
    seconds = float(wait_s) if hasattr(type(wait_s), "__float__") else math.nan
    if seconds == math.inf:
        return None
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
        if self.future.done():
            return
        if isinstance(error, StopIteration):  # which a future does not take
            stopped = RuntimeError("a receiver raised StopIteration")
            stopped.__cause__ = error
            error = stopped
        self.future.set_exception(error)


class LoopReceiver:
    """Gives a receiver the calls that have come, on the loop's thread.

    Args:
        end: ends the actor when its receiver exits. Without it, all calls raise the
            exit: those that are not answered yet, and later ones.
    """

    def __init__(
        self,
        instance: Any,
        name: str,
        end: Callable[[ActorExit | SystemExit], None] | None = None,
    ) -> None:
        self._receive = getattr(instance, name)
        self._end = end
        self._exit: BaseException | None = None
        self._unanswered: set[LoopCall] = set()  # where they have to end the actor
        self._calls: list[LoopCall] = []
        self._timer: asyncio.TimerHandle | None = None

    def accept(
        self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> asyncio.Future[Any]:
        """Pass on a call; the future ends when the receiver has answered it."""
        import asyncio  # it takes a while, and every worker imports this module

        if self._exit is not None:
            raise self._exit
        loop = asyncio.get_running_loop()
        call = LoopCall(method, args, kwargs, loop.create_future())
        self._calls.append(call)
        if self._end is None:
            self._unanswered.add(call)
            call.future.add_done_callback(lambda _: self._unanswered.discard(call))
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
        wait_s = self.give()
        if wait_s is not None:
            self._schedule(loop, wait_s)

    @property
    def has_calls(self) -> bool:
        return bool(self._calls)

    def give(self) -> float | None:
        """Have the receiver take what has come."""
        calls, self._calls = self._calls, []
        try:
            return check_wait(self._receive(calls))
        except BaseException as error:
            if isinstance(error, (ActorExit, SystemExit)):
                if self._end is not None:
                    self._end(error)
                    return None
                self._exit = error
                calls = list(self._unanswered)
            for call in calls:
                call.fail(error)
            return None
