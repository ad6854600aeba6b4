"""``skate.progress``: how far many refs are, while one waits for them."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ._ref import ObjectRef, check_refs
from ._runtime import current

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

T = TypeVar("T")

_PLAIN_S = 1.0  # between two lines
_TICK_S = 0.1


def progress(refs: list[ObjectRef[T]]) -> list[ObjectRef[T]]:
    """Wait for ``refs``, and show how many are done, the rate, and the time left.

    On a terminal a bar of ``rich``, if that is installed; else, and in notebooks, a
    line a second. On standard error. Failed refs are counted, not raised.

    Returns:
        ``refs``, all of them ready: ``skate.get(skate.progress(refs))``.
    """
    if not isinstance(refs, list):
        raise TypeError(f"skate.progress takes a list of ObjectRefs, not {refs!r}.")
    check_refs("skate.progress", refs)
    engine = current()
    display = _display(len(refs))
    done = failed = 0
    watch = engine.watch()
    try:
        for tag, ref in enumerate(refs):
            watch.add(ref, tag)
        while done < len(refs):
            tags: list[int] = []
            watch.next(_TICK_S, tags)
            done += len(tags)
            failed += sum(engine.failed(refs[tag]) for tag in tags)
            display.show(done, failed)
    finally:
        watch.close()
        display.close(done, failed)
    return refs


class _Display(Protocol):
    def show(self, done: int, failed: int) -> None: ...

    def close(self, done: int, failed: int) -> None: ...


def _display(total: int) -> _Display:
    if sys.stderr.isatty():
        try:
            return _Bar(total)
        except ImportError:
            pass
    return _Lines(total)


class _Lines:
    def __init__(self, total: int) -> None:
        self._total = total
        self._start = self._last = time.monotonic()

    def show(self, done: int, failed: int) -> None:
        if time.monotonic() - self._last >= _PLAIN_S:
            self._print(done, failed)

    def close(self, done: int, failed: int) -> None:
        self._print(done, failed)

    def _print(self, done: int, failed: int) -> None:
        self._last = time.monotonic()
        seconds = self._last - self._start
        parts = [f"{done}/{self._total} done in {seconds:.1f} s"]
        if done and seconds > 0:
            parts.append(f"{done / seconds:.1f}/s")
            if done < self._total:
                parts.append(f"{(self._total - done) * seconds / done:.0f} s left")
        if failed:
            parts.append(f"{failed} failed")
        print(", ".join(parts), file=sys.stderr, flush=True)


class _Bar:
    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        # Any: rich's columns have no common type that its stubs accept here.
        columns: list[Any] = [
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f}/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[failed]}"),
        ]
        self._start = time.monotonic()
        self._progress: Progress = Progress(*columns, console=Console(stderr=True))
        self._task: TaskID = self._progress.add_task(
            "", total=total, rate=0.0, failed=""
        )
        self._progress.start()

    def show(self, done: int, failed: int) -> None:
        seconds = time.monotonic() - self._start
        self._progress.update(
            self._task,
            completed=done,
            rate=done / seconds if seconds > 0 else 0.0,
            failed=f"{failed} failed" if failed else "",
        )

    def close(self, done: int, failed: int) -> None:
        self.show(done, failed)
        self._progress.stop()
