"""How far a run is: a bar on a terminal, else a line a second, on standard error."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any, Protocol

_PLAIN_S = 1.0  # between two lines


@dataclass(slots=True)
class Tally:
    """What there is to show."""

    total: int | None  # None: unknown, or endless
    total_cost: float | None
    done: int = 0
    done_cost: float = 0.0
    failed: int = 0

    def rate(self, seconds: float) -> float:
        """Simulations a second."""
        return self.done / seconds if seconds > 0 else 0.0

    def seconds_left(self, seconds: float) -> float | None:
        """By cost where costs are known, else by number; None: nobody knows."""
        if self.total is None or not self.done:
            return None
        if self.total_cost and self.done_cost > 0:
            rest = max(0.0, self.total_cost - self.done_cost)
            return rest * seconds / self.done_cost
        return (self.total - self.done) * seconds / self.done


class Display(Protocol):
    """Shows a tally, which changes."""

    def show(self, tally: Tally) -> None: ...

    def close(self, tally: Tally) -> None: ...


def display(total: int | None) -> Display:
    """A bar where there is a terminal and rich, else lines."""
    if sys.stderr.isatty():
        try:
            return _Bar(total)
        except ImportError:
            pass
    return _Lines()


class _Lines:
    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def show(self, tally: Tally) -> None:
        if time.monotonic() - self._last >= _PLAIN_S:
            self._print(tally)

    def close(self, tally: Tally) -> None:
        self._print(tally)

    def _print(self, tally: Tally) -> None:
        self._last = time.monotonic()
        seconds = self._last - self._start
        of = "" if tally.total is None else f"/{tally.total}"
        parts = [f"{tally.done}{of} simulations in {seconds:.1f} s"]
        if tally.done:
            parts.append(f"{tally.rate(seconds):.1f}/s")
        left = tally.seconds_left(seconds)
        if left:
            parts.append(f"{left:.0f} s left")
        if tally.failed:
            parts.append(f"{tally.failed} failed")
        print(", ".join(parts), file=sys.stderr, flush=True)


class _Bar:
    def __init__(self, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        # Any: rich's columns have no common type that its stubs accept here.
        columns: list[Any] = [
            TextColumn("simulations"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        ]
        self._start = time.monotonic()
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task = self._progress.add_task("", total=total, text="")
        self._progress.start()

    def show(self, tally: Tally) -> None:
        seconds = time.monotonic() - self._start
        parts = [f"{tally.rate(seconds):.1f}/s"]
        left = tally.seconds_left(seconds)
        if left:
            parts.append(f"{left:.0f} s left")
        if tally.failed:
            parts.append(f"{tally.failed} failed")
        text = ", ".join(parts)
        self._progress.update(self._task, completed=tally.done, text=text)

    def close(self, tally: Tally) -> None:
        self.show(tally)
        self._progress.stop()
