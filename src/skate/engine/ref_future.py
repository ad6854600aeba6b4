"""Futures of refs: ``concurrent.futures`` ones that a signal's handler cannot lock."""

from __future__ import annotations

import _thread
import threading
from concurrent.futures import Future
from typing import Any

from .futures import ends_futures


class _Condition(_thread.RLock):  # type: ignore[misc]  # final for checkers only
    """A condition that ``with`` takes in one step.

    ``threading.Condition`` takes its lock in a function of Python's. A handler that
    raises at the end of that leaves it locked for good, and with it whoever is to end
    the future.
    """

    def __init__(self) -> None:
        self._waiters: threading.Condition | None = None  # once somebody waits

    def wait(self, timeout: float | None = None) -> bool:
        if ends_futures() and timeout != 0:
            raise RuntimeError(
                "a callback of a future waits for another future, and would wait for "
                "ever: both end on the thread that it holds up. Ask for the value with "
                "skate.get(ref), or wait in a thread of your own."
            )
        if self._waiters is None:
            self._waiters = threading.Condition(self)
        return self._waiters.wait(timeout)

    def notify_all(self) -> None:
        if self._waiters is not None:
            self._waiters.notify_all()


def keep_unlocked(future: Future[Any]) -> None:
    """Let no handler of a signal that raises in a call of ``future`` leave it locked.

    It is new: nobody else has it yet.
    """
    future._condition = _Condition()  # type: ignore[assignment]  # all that it uses


def new_future() -> Future[Any]:
    future: Future[Any] = Future()
    keep_unlocked(future)
    return future
