"""In which order simulations start, and how many go together. Plain data: no tasks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

from .cost import LearnedCosts, check_cost


@dataclass(slots=True, eq=False)
class Job:
    """One simulation that is to run, runs, or runs again."""

    index: int
    config: Any
    cost: float | None = None  # None: nothing is known
    attempt: int = 0
    partials: int = field(default=0, repr=False)  # yielded by this attempt


@dataclass(slots=True)
class Schedule:
    """Jobs in the order in which they should start."""

    jobs: Iterator[Job]
    total: int | None  # how many there are; None: unknown
    total_cost: float | None  # of all, if every cost is known

    def __iter__(self) -> Iterator[Job]:
        return self.jobs


CostHint = Sequence[float] | Callable[[Any], float] | LearnedCosts | None


def schedule(configs: Iterable[Any], cost: CostHint, window: int) -> Schedule:
    """The most expensive first; in the order of ``configs`` without ``cost``.

    Of an iterator, which may be endless, ``window`` at a time are put in order; of
    anything with a length, or with ``cost`` as numbers, all.

    Raises:
        ValueError: there are no configurations, or a cost is no cost.
    """
    if isinstance(configs, Sized) and len(configs) == 0:
        raise ValueError("configs is empty: there is nothing to simulate.")
    if cost is None:
        total = len(configs) if isinstance(configs, Sized) else None
        jobs = (Job(index, config) for index, config in enumerate(configs))
        return Schedule(jobs, total, None)
    if callable(cost) or isinstance(cost, LearnedCosts):
        expect = cost.expect if isinstance(cost, LearnedCosts) else cost
        costed = (
            Job(index, config, check_cost(index, expect(config)))
            for index, config in enumerate(configs)
        )
        if not isinstance(configs, Sized):
            return Schedule(_longest_of_window(costed, window), None, None)
        jobs_now = list(costed)
    else:
        jobs_now = _with_numbers(list(configs), list(cost))
    jobs_now.sort(key=_longest_first)
    total_cost = sum(job.cost or 0.0 for job in jobs_now)
    return Schedule(iter(jobs_now), len(jobs_now), total_cost or None)


def _longest_first(job: Job) -> float:
    return -(job.cost or 0.0)


def _with_numbers(configs: list[Any], costs: list[float]) -> list[Job]:
    if len(costs) != len(configs):
        raise ValueError(
            f"cost has {len(costs)} numbers for {len(configs)} configurations."
        )
    return [
        Job(index, config, check_cost(index, cost))
        for index, (config, cost) in enumerate(zip(configs, costs, strict=True))
    ]


def _longest_of_window(jobs: Iterator[Job], window: int) -> Iterator[Job]:
    # Block by block: a cheap one is never put off for ever.
    while block := list(itertools.islice(jobs, window)):
        yield from sorted(block, key=_longest_first)


@dataclass
class Grouping:
    """How many jobs travel in one task, where a task costs more than they do.

    Guided self-scheduling: a group is at most a quarter of a worker's share of what is
    left, so that groups shrink to single jobs before the end.
    """

    num_workers: int
    task_s: float  # seconds that a task may take for its own cost not to show
    most: int = 256  # jobs in one task
    _busy_s: float = 0.0
    _cost: float = 0.0
    _seen: int = 0

    def record(self, job: Job, seconds: float) -> None:
        self._busy_s += seconds
        self._cost += 1.0 if job.cost is None else job.cost
        self._seen += 1

    def take(self, jobs: Iterator[Job], left: float) -> list[Job]:
        """The next group; ``left`` counts the jobs that have not started."""
        group: list[Job] = []
        most = max(1.0, min(self.most, left / (4 * self.num_workers)))
        if self._seen < self.num_workers:  # nothing is known yet
            most = 1.0
        expected_s = 0.0
        while len(group) + 1 <= most and expected_s < self.task_s:
            job = next(jobs, None)
            if job is None:
                break
            group.append(job)
            expected_s += self._expect_s(job)
        return group

    def _expect_s(self, job: Job) -> float:
        if self._cost <= 0:
            return math.inf
        return self._busy_s / self._cost * (1.0 if job.cost is None else job.cost)
