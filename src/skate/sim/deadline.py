"""A time limit for code that may hang anywhere, in C code that keeps the GIL too."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

_GRACE_S = 1.0  # for Python to hear of it; then the process ends
_INTERRUPT = signal.SIGVTALRM


class StepTimeout(BaseException):  # user code must not swallow it
    """A step was interrupted: it took longer than it may."""


class StepDeadline:
    """Between `begin` and `end`, at most ``seconds`` may go by.

    First a signal interrupts the main thread, which helps where Python code runs or
    waits: :class:`StepTimeout` is raised there. Where that is not heard within a
    second, the kernel's timer ends the process: SIGALRM has its default action.

    Without ``preemptive`` (the process is not ours alone) nothing is interrupted, and
    `end` says afterwards that the time was over.
    """

    def __init__(self, seconds: float | None, *, preemptive: bool) -> None:
        self.is_off = seconds is None
        self._seconds = seconds
        self._began: float | None = None
        self._kills = preemptive and seconds is not None
        if self._kills:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.signal(_INTERRUPT, self._interrupt)
            self._main = threading.get_ident()
            watch = threading.Thread(target=self._watch, daemon=True)
            watch.name = "skate-step-deadline"
            watch.start()

    def begin(self) -> None:
        """A step begins."""
        if self._seconds is None:
            return
        self._began = time.monotonic()
        if self._kills:
            signal.setitimer(signal.ITIMER_REAL, self._seconds + _GRACE_S)

    def end(self) -> bool:
        """It has ended. True: too late, and nothing has interrupted it."""
        began, self._began = self._began, None
        if self._kills:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if began is None or self._seconds is None:
            return False
        return time.monotonic() - began > self._seconds

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._is_over():  # else the step has ended just now
            self._began = None
            raise StepTimeout

    def _is_over(self) -> bool:
        began, seconds = self._began, self._seconds
        if began is None or seconds is None:
            return False
        return time.monotonic() - began > seconds

    def _watch(self) -> None:
        assert self._seconds is not None
        while True:
            began = self._began
            rest = self._seconds / 4
            if began is not None:
                rest = min(rest, began + self._seconds - time.monotonic())
            if self._is_over():
                signal.pthread_kill(self._main, _INTERRUPT)
            time.sleep(max(rest, 0.001))
