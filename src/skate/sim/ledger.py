"""Who ran which simulation, and when: noted at once, added up when somebody asks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .dispatch import Failed
from .simulation import Finished

_MOST_SPANS = 200_000  # kept for a picture; an endless run must not fill the memory
_MOST_NOTES = 1000  # that are not added up


@dataclass(frozen=True)
class Span:
    """One simulation: where it ran, and when, in seconds since the start."""

    index: int
    worker: str
    start: float
    end: float
    failed: bool = False


class Ledger:
    """The simulations of one run. Times are of this process's ``perf_counter``."""

    def __init__(self) -> None:
        self.started = self.ended = 0.0
        self._spans: deque[tuple[int, str, float, float, bool]]
        self._spans = deque(maxlen=_MOST_SPANS)  # as of Span, quicker to make
        self._notes: list[tuple[int, str, float, float, float | None, float]] = []
        self._workers: set[str] = set()
        self._busy_s = self._cpu_s = self._longest_s = 0.0

    def begin(self, now: float) -> None:
        self.started = self.ended = now

    def note(self, index: int, outcome: Finished | Failed, arrived: float) -> None:
        """An outcome came. Adding up with cold caches costs several times as much."""
        self.ended = arrived
        worker = outcome.worker
        if worker:  # else it failed, and nobody knows where
            cpu_s = outcome.cpu_s if type(outcome) is Finished else None
            note = (index, worker, outcome.start, outcome.end, cpu_s, arrived)
            self._notes.append(note)
            if len(self._notes) >= _MOST_NOTES:
                self._add_up()

    @property
    def spans(self) -> list[Span]:
        """In the order in which they were noted."""
        self._add_up()
        return [Span(*span) for span in self._spans]

    def stats(self, num_workers: int) -> dict[str, float]:
        """The part of :meth:`Run.stats` that is about time."""
        self._add_up()
        wall_s = self.ended - self.started
        available_s = wall_s * num_workers
        return {
            "workers": len(self._workers),
            "wall_s": wall_s,
            "busy_s": self._busy_s,
            "cpu_s": self._cpu_s,
            "useful": self._busy_s / available_s if available_s else 0.0,
            "longest_s": self._longest_s,
        }

    def _add_up(self) -> None:
        for index, worker, start, end, cpu_s, arrived in self._notes:
            seconds = end - start
            if start < self.started or end > arrived:  # the clock of another machine
                end = arrived
                start = end - seconds
            since = self.started
            span = index, worker, start - since, end - since, cpu_s is None
            self._spans.append(span)
            self._workers.add(worker)
            if cpu_s is not None:
                self._busy_s += seconds
                self._cpu_s += cpu_s
                self._longest_s = max(self._longest_s, seconds)
        self._notes.clear()
