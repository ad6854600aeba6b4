"""The event loop of an async actor: it runs while its thread has the baton."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from typing import TYPE_CHECKING, Any

from .baton import Wait, this_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextvars import Context

    from .baton import Baton


class BatonLoop(asyncio.SelectorEventLoop):
    """An event loop that passes the baton on whenever it has nothing to do."""

    def __init__(self, baton: Baton, name: str) -> None:
        self._turns = _TurnSelector(baton, name)
        super().__init__(self._turns)

    def call_soon_threadsafe(  # type: ignore[override]  # typeshed's is variadic
        self,
        callback: Callable[..., object],
        *args: Any,  # Any: as the base class has it
        context: Context | None = None,
    ) -> asyncio.Handle:
        handle = super().call_soon_threadsafe(callback, *args, context=context)
        self._turns.wake()
        return handle

    def end(self) -> None:
        """Cancel what still runs, give it one chance to clean up, and close."""
        for task in asyncio.all_tasks(self):
            task.cancel()
        # A few rounds that do not wait: a ``finally`` that awaits for long has lost.
        for _ in range(10):
            left = asyncio.all_tasks(self)
            if not left:
                break
            self.call_soon(self.stop)
            with contextlib.suppress(SystemExit):  # of a task: its actor ends anyway
                self.run_forever()
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        asyncio.set_event_loop(None)
        self.close()


class _TurnSelector(selectors.BaseSelector):
    """Waits for a turn instead of the kernel, as long as there is nothing but turns.

    That keeps the order of events a matter of the program. A loop that watches files
    or sockets of its own has to wait for the kernel, outside of the baton.
    """

    def __init__(self, baton: Baton, name: str) -> None:
        self._baton = baton
        self._name = name
        self._inner = selectors.DefaultSelector()
        self._wait: Wait | None = None
        self._woken = False

    def wake(self) -> None:
        """Something was scheduled from outside the loop."""
        with self._baton.lock:
            self._woken = True
            if self._wait is not None:
                self._baton.give_turn(self._wait)

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        if len(self._inner.get_map()) > 1:  # one is the loop's own, for waking it
            with self._baton.outside():
                return self._inner.select(timeout)
        with self._baton.lock:
            if self._woken:
                timeout = 0
            may_go_on = timeout is not None and timeout <= 0
            rest = not may_go_on or (self._baton.crowded() and not self._ending())
            if rest:
                self._wait = Wait(
                    lambda: f"the event loop of {self._name}",
                    timeout=timeout,
                    idle=timeout is None,
                )
        if rest:
            assert self._wait is not None
            try:
                self._baton.block(self._wait)
            finally:
                self._wait = None
        self._woken = False
        return self._inner.select(0)

    @staticmethod
    def _ending() -> bool:
        worker = this_worker()
        return worker is not None and worker.home.closed

    def register(
        self, fileobj: Any, events: int, data: Any = None
    ) -> selectors.SelectorKey:
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._inner.get_map()

    def close(self) -> None:
        self._inner.close()
