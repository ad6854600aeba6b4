"""What a run shows while it goes on: a bar on a terminal, else now and then a line."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from .result import is_number

LINE_S = 10.0  # between two lines where there is no terminal


class Progress(contextlib.ExitStack):
    """Shows reports. As a context it ends what it has begun to show."""

    def __init__(self, now: float) -> None:
        super().__init__()
        self._start = now
        self._printed = now
        self._done_at_start: float | None = None
        self._bar: Any = None
        self._task: Any = None
        if importlib.util.find_spec("rich") is not None:
            self._open_bar()

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        console = Console()
        if console.is_terminal:
            columns = (BarColumn(), TextColumn("{task.description}"))
            self._bar = self.enter_context(Bar(*columns, console=console))
            self._task = self._bar.add_task("starting", total=1.0)

    def show(
        self,
        metrics: Mapping[str, Any],
        done: float | None,
        samples_per_s: float | None,
        now: float,
    ) -> None:
        """``done`` is a share, ``now`` seconds."""
        if done is not None and self._done_at_start is None:
            self._done_at_start = done  # a resumed run begins in the middle
            self._start = now
        text = self.line(metrics, done, samples_per_s, now)
        if self._bar is not None:
            self._bar.update(self._task, completed=done or 0.0, description=text)
        elif now - self._printed >= LINE_S or done == 1.0:
            self._printed = now
            print(text, flush=True)

    def line(
        self,
        metrics: Mapping[str, Any],
        done: float | None,
        samples_per_s: float | None,
        now: float,
    ) -> str:
        words = []
        if done is not None:
            words.append(f"{done:4.0%}")
        words += [f"{k} {v:.4g}" for k, v in metrics.items() if is_number(v)]
        if samples_per_s is not None:
            words.append(f"{samples_per_s:,.0f} samples/s")
        left = self.time_left(done, now)
        if left is not None:
            words.append(f"{left:,.0f} s left")
        return "  ".join(words)

    def time_left(self, done: float | None, now: float) -> float | None:
        """Seconds, at the speed so far; None if that is not known yet."""
        if done is None or self._done_at_start is None or done <= self._done_at_start:
            return None
        speed = (done - self._done_at_start) / (now - self._start)
        return (1 - done) / speed
