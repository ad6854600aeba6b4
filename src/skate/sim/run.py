"""``sim.run``: one simulation for each configuration, used as they finish."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

import numpy as np

import skate

C = TypeVar("C")
R = TypeVar("R")


@dataclass(frozen=True)
class FailedRun:
    """What ``on_error="return"`` yields in place of a result."""

    index: int
    config: Any
    exception: Exception


@dataclass(frozen=True)
class Span:
    """One finished simulation: where it ran, and when, in seconds since the start."""

    index: int
    worker: str
    start: float
    end: float


@dataclass(slots=True)
class _Job:
    index: int
    config: Any
    failures: int = 0


def run(
    simulate: Callable[..., R],
    configs: Iterable[C],
    *,
    cost: Sequence[float] | Callable[[C], float] | None = None,
    max_in_flight: int | None = None,
    ordered: bool = False,
    timeout: float | None = None,
    retries: int = 0,
    on_error: Literal["raise", "return"] = "raise",
    run_seed: int = 0,
    progress: bool = False,
) -> Run[R]:
    """Call ``simulate(config)`` for every configuration, each as a task.

    Args:
        simulate: a plain function of one configuration. If it has a parameter
            ``seed``, it also gets ``seed=numpy.random.SeedSequence(run_seed,
            spawn_key=(index,))``: results do not depend on which worker ran what.
        configs: any iterable; drawn from as there is room, unless ``cost`` is given.
        cost: expected cost of each configuration, in any unit: numbers in the order
            of ``configs``, or a function. The most expensive start first, so that
            none of them is left running alone at the end.
        max_in_flight: tasks submitted and not finished; default 16 a CPU.
        ordered: yield in the order of ``configs``, not as they finish. Without
            ``cost``, others get ahead of a slow one by 4 times ``max_in_flight``.
        timeout: not available yet: ValueError.
        retries: how often a failed simulation is started again, with its own seed.
        on_error: ``"raise"`` the first failure from the iteration, or ``"return"``
            a :class:`FailedRun` in its place.
        progress: show a bar on the terminal (needs rich).

    Returns:
        A :class:`Run`: iterate it. Nothing starts before the first ``next``.
    """
    if timeout is not None:
        raise ValueError(
            f"timeout={timeout!r}: skate cannot yet end a task that is running. Let "
            "simulate() watch its own time, and raise when it is over."
        )
    if on_error not in ("raise", "return"):
        raise ValueError(f'on_error={on_error!r}; expected "raise" or "return".')
    if retries < 0:
        raise ValueError(f"retries={retries!r}; expected 0 or more.")
    if max_in_flight is None:
        max_in_flight = max(1, 16 * int(skate.cluster_resources().get("CPU", 1)))
    elif max_in_flight < 1:
        raise ValueError(f"max_in_flight={max_in_flight!r}; expected at least 1.")
    jobs = _jobs(configs, cost)
    task = skate.remote(_timed(simulate, run_seed)).options(max_retries=0)
    # By cost, the one that all others wait for may start last: then all are held.
    max_ahead = 4 * max_in_flight if cost is None else math.inf
    return Run(
        task,
        jobs,
        max_in_flight=max_in_flight,
        max_ahead=max_ahead,
        ordered=ordered,
        retries=retries,
        raise_failures=on_error == "raise",
        progress=progress,
    )


class Run(Generic[R]):
    """The simulations of one :func:`run`; iterate it once for their results."""

    def __init__(
        self,
        task: Any,  # a RemoteFunction; its parameters are this module's own
        jobs: Iterator[_Job],
        *,
        max_in_flight: int,
        max_ahead: float,
        ordered: bool,
        retries: int,
        raise_failures: bool,
        progress: bool,
    ) -> None:
        self._task = task
        self._jobs = jobs
        self._max_in_flight = max_in_flight
        self._max_ahead = max_ahead
        self._retries = retries
        self._raise = raise_failures
        self._in_flight: dict[Any, _Job] = {}
        self._held: dict[int, Any] = {}  # results that wait for an earlier one
        self._started = 0.0
        self._ended = 0.0
        self.spans: list[Span] = []
        self._failed = self._retried = 0
        results = self._in_order() if ordered else self._as_finished()
        self._results = _bar(results) if progress else results

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        return cast(R, next(self._results))  # or a FailedRun, if the caller asked

    def stats(self) -> dict[str, float]:
        """Counts and seconds so far.

        ``runs`` finished, ``failed``, ``retried``, ``workers`` that took part,
        ``wall_s`` since the first start, ``busy_s`` inside ``simulate`` over all
        workers, and ``longest_s``, the longest single run.
        """
        lengths = [span.end - span.start for span in self.spans]
        return {
            "runs": len(lengths),
            "failed": self._failed,
            "retried": self._retried,
            "workers": len({span.worker for span in self.spans}),
            "wall_s": self._ended - self._started,
            "busy_s": sum(lengths),
            "longest_s": max(lengths, default=0.0),
        }

    def plot(self, path: str | Path) -> None:
        """Draw which worker ran what, and when, into an image file (matplotlib)."""
        from .plot import gantt

        gantt(self.spans, path)

    def _as_finished(self) -> Iterator[Any]:
        for _, result in self._outcomes():
            yield result

    def _in_order(self) -> Iterator[Any]:
        expected = 0
        for index, result in self._outcomes():
            self._held[index] = result
            while expected in self._held:
                yield self._held.pop(expected)
                expected += 1

    def _outcomes(self) -> Iterator[tuple[int, Any]]:
        """Index and result of each simulation, as they finish."""
        self._started = self._ended = time.perf_counter()
        while True:
            while self._has_room() and (job := next(self._jobs, None)):
                self._submit(job)
            if not self._in_flight:
                return
            refs = list(self._in_flight)
            ready, rest = skate.wait(refs, num_returns=1)
            if rest:  # take all that are there: one scan of the list serves them all
                ready += skate.wait(rest, num_returns=len(rest), timeout=0)[0]
            for ref in ready:
                yield from self._settle(ref, self._in_flight.pop(ref))

    def _has_room(self) -> bool:
        unfinished = len(self._in_flight)
        ahead = unfinished + len(self._held)
        return unfinished < self._max_in_flight and ahead < self._max_ahead

    def _submit(self, job: _Job) -> None:
        self._in_flight[self._task.remote(job.index, job.config)] = job

    def _settle(self, ref: Any, job: _Job) -> Iterator[tuple[int, Any]]:
        try:
            result, worker, start, end = skate.get(ref)
        except skate.exceptions.SkateError as error:
            if job.failures < self._retries:
                job.failures += 1
                self._retried += 1
                self._submit(job)
                return
            self._failed += 1
            if self._raise:
                raise
            yield job.index, FailedRun(job.index, job.config, error)
        else:
            began, self._ended = self._started, time.perf_counter()
            self.spans.append(Span(job.index, worker, start - began, end - began))
            yield job.index, result


def _jobs(configs: Iterable[Any], cost: Any) -> Iterator[_Job]:
    if cost is None:
        return (_Job(index, config) for index, config in enumerate(configs))
    configs = list(configs)
    costs = [cost(config) for config in configs] if callable(cost) else list(cost)
    if len(costs) != len(configs):
        raise ValueError(
            f"cost has {len(costs)} numbers for {len(configs)} configurations."
        )
    longest_first = sorted(range(len(costs)), key=lambda i: -costs[i])
    return iter([_Job(index, configs[index]) for index in longest_first])


def _timed(simulate: Callable[..., Any], run_seed: int) -> Callable[..., Any]:
    """The function that runs as a task: ``simulate``, its worker and its times."""
    takes_seed = "seed" in inspect.signature(simulate).parameters

    def simulation(index: int, config: Any) -> tuple[Any, str, float, float]:
        seed = {}
        if takes_seed:
            seed["seed"] = np.random.SeedSequence(run_seed, spawn_key=(index,))
        start = time.perf_counter()  # one clock for all processes of a machine
        result = simulate(config, **seed)
        end = time.perf_counter()
        # None on the driver's own thread: the inline engine runs tasks there.
        worker = skate.get_runtime_context().get_worker_id() or "driver"
        return result, worker, start, end

    return simulation


def _bar(results: Iterator[Any]) -> Iterator[Any]:
    try:
        from rich.progress import track
    except ImportError as error:
        raise ImportError(
            "sim.run(progress=True) draws its bar with rich, which is not installed: "
            "pip install 'skate[rl]'"
        ) from error
    return iter(track(results, description="simulations"))
