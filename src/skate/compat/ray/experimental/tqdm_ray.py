"""``ray.experimental.tqdm_ray``: progress, as lines in the driver's terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["safe_print", "tqdm"]

safe_print = print  # lines of workers and of the driver do not mix


class tqdm:  # noqa: N801 - Ray's name
    """Prints how far it is, once in ``flush_interval_s`` at most, and at the end.

    Args:
        iterable: what to iterate over; None to call ``update`` by hand.
        desc: what is in progress.
        total: how many there are; None is the length of ``iterable``.
        unit: of what is counted.
        position: accepted.
        flush_interval_s: seconds between two lines.
    """

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        desc: str | None = None,
        total: int | None = None,
        unit: str | None = None,
        position: int | None = None,
        flush_interval_s: float | None = None,
    ) -> None:
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)  # type: ignore[arg-type]  # it has a length
        self._iterable = iterable
        self._desc = desc or ""
        self.total = total
        self.n = 0
        self._unit = unit or "it"
        self._interval = 1.0 if flush_interval_s is None else flush_interval_s
        self._start = self._last = time.monotonic()
        self._closed = False

    def set_description(self, desc: str) -> None:
        """Another text before the numbers."""
        self._desc = desc
        self.refresh()

    def update(self, n: int = 1) -> None:
        """``n`` more are done."""
        self.n += n
        self.refresh()

    def refresh(self) -> None:
        """Print a line, if the last one is old enough."""
        now = time.monotonic()
        if now - self._last >= self._interval:
            self._last = now
            self._print()

    def close(self) -> None:
        """Print the last line."""
        if not self._closed:
            self._closed = True
            self._print()

    def __iter__(self) -> Iterator[Any]:
        if self._iterable is None:
            raise ValueError("this tqdm was made without an iterable.")
        for item in self._iterable:
            yield item
            self.update()
        self.close()

    def _print(self) -> None:
        seconds = time.monotonic() - self._start
        rate = self.n / seconds if seconds else 0.0
        of = "" if self.total is None else f"/{self.total}"
        label = f"{self._desc}: " if self._desc else ""
        print(f"{label}{self.n}{of} [{rate:.1f}{self._unit}/s]", file=sys.stderr)
