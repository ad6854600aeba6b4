"""The simulations under way: starts them, and tells what has become of them."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import skate
from skate.exceptions import SkateError, TaskError

from .schedule import Job
from .simulation import (
    Began,
    Finished,
    Simulation,
    Yielded,
    simulate,
    simulate_group,
    simulate_in_steps,
)

_WINDOW = 64  # items of one simulation that may wait to be taken


class RunTimeoutError(SkateError, TimeoutError):
    """A simulation took longer than its ``timeout``, and was ended."""


class Failed(NamedTuple):
    """A simulation that came to nothing."""

    error: SkateError
    worker: str = ""  # and when, if that is known
    start: float = 0.0
    end: float = 0.0


Outcome = Finished | Failed | Yielded


class Dispatcher:
    """Tasks for jobs. O(1) for each that starts and each that is ready.

    With a ``timeout``, or where ``simulate`` is a generator, a task is a stream whose
    first item says that it has begun: time spent in the queue does not count. Without
    ``processes`` there is nothing to end, and a task is late when it has returned.
    """

    def __init__(
        self, simulation: Simulation, timeout: float | None, *, processes: bool
    ) -> None:
        self._timeout = timeout
        self._processes = processes
        self._single = simulation.as_task(simulate)
        self._grouped = simulation.as_task(simulate_group)
        watched = processes and timeout is not None
        self._streams = watched or simulation.is_generator
        if self._streams:
            self._stepwise = simulation.as_task(
                simulate_in_steps, _generator_backpressure_num_objects=_WINDOW
            )
        self.arrived = 0.0  # when the latest outcomes came, by perf_counter
        self._ready: Any = skate.as_completed()  # Any: of refs and of streams
        self._jobs: dict[Any, list[Job]] = {}  # by the ref or the stream
        self._began: dict[Any, Began] = {}
        self._overdue: set[Any] = set()
        self._deadlines: list[tuple[float, int, Any]] = []

    def __len__(self) -> int:
        """Tasks that are under way."""
        return len(self._jobs)

    @property
    def can_group(self) -> bool:
        return not self._streams and self._timeout is None

    def start(self, jobs: list[Job]) -> None:
        """Start one job, or several in one task."""
        if self._streams:
            (job,) = jobs
            task: Any = self._stepwise.remote(job.index, job.config)
        elif len(jobs) == 1:
            task = self._single.remote(jobs[0].index, jobs[0].config)
        else:
            task = self._grouped.remote([(job.index, job.config) for job in jobs])
        self._jobs[task] = jobs
        self._ready.add(task)

    def outcomes(self, timeout: float | None = None) -> Iterator[tuple[Job, Outcome]]:
        """What has come since the last call; waits for something, or ``timeout``."""
        batch = self._ready.next_batch(self._until_next_deadline(timeout))
        self.arrived = time.perf_counter()
        for task in batch:
            if self._streams:
                yield from self._step(task)
            else:
                yield from self._end(task)
        self._end_overdue()

    def cancel(self) -> None:
        """Nobody wants the rest."""
        for task in self._jobs:
            skate.cancel(task)
        self.close()

    def close(self) -> None:
        """Let go of what is under way."""
        self._ready.close()
        self._jobs.clear()

    def _end(self, task: Any) -> Iterator[tuple[Job, Outcome]]:
        jobs = self._jobs.pop(task)
        try:
            outcomes = skate.get(task)
        except SkateError as error:
            if len(jobs) == 1:
                yield jobs[0], Failed(error)
                return
            # The process ended, and one of them was the cause: each on its own.
            for job in jobs:
                self.start([job])
        else:
            if len(jobs) == 1:
                yield jobs[0], self._in_time(jobs[0], outcomes)
                return
            worker, laps = outcomes
            for job, lap in zip(jobs, laps, strict=True):
                if isinstance(lap, TaskError):
                    yield job, Failed(lap)
                else:
                    yield job, Finished(worker, *lap)

    # streams --------------------------------------------------------------------------

    def _step(self, task: Any) -> Iterator[tuple[Job, Outcome]]:
        (job,) = self._jobs[task]
        try:
            item = skate.get(next(task))
        except SkateError as error:
            yield job, self._failure(task, job, error)
            return
        if isinstance(item, Began):
            self._began[task] = item
            if self._timeout is not None and self._processes:
                # Its clock may be another machine's: from when we hear of it.
                due = time.monotonic() + self._timeout
                heapq.heappush(self._deadlines, (due, job.index, task))
        elif isinstance(item, Finished):
            self._forget(task)
            yield job, self._in_time(job, item) if self._processes else item
            return
        else:
            job.partials += 1
            yield job, item
        self._ready.add(task)

    def _failure(self, task: Any, job: Job, error: SkateError) -> Failed:
        worker, start = self._began.get(task, ("", 0.0))
        if task in self._overdue:
            error = self._too_late(job)
        self._forget(task)
        return Failed(error, worker, start, time.perf_counter())

    def _forget(self, task: Any) -> None:
        del self._jobs[task]
        self._began.pop(task, None)
        self._overdue.discard(task)

    def _in_time(self, job: Job, done: Finished) -> Finished | Failed:
        if self._timeout is None or done.end - done.start <= self._timeout:
            return done
        return Failed(self._too_late(job), done.worker, done.start, done.end)

    def _too_late(self, job: Job) -> RunTimeoutError:
        return RunTimeoutError(
            f"run {job.index} took longer than timeout={self._timeout:g} s and was "
            f"ended. Its configuration: {job.config!r:.200}"
        )

    def _until_next_deadline(self, timeout: float | None) -> float | None:
        while self._deadlines and self._deadlines[0][2] not in self._jobs:
            heapq.heappop(self._deadlines)
        if not self._deadlines:
            return timeout
        left = max(0.0, self._deadlines[0][0] - time.monotonic())
        return left if timeout is None else min(left, timeout)

    def _end_overdue(self) -> None:
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            task = heapq.heappop(self._deadlines)[2]
            if task in self._jobs:
                self._overdue.add(task)
                # By force: a simulator that hangs in C code hears nothing else.
                skate.cancel(task, force=True)
