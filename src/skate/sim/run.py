"""``sim.run``: one simulation for each configuration, used as they finish."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Generic, Literal, TypeVar

import numpy as np

import skate
from skate.exceptions import SkateError

from .cost import LearnedCosts, learned_costs
from .dispatch import Dispatcher, Failed, Outcome
from .ledger import Ledger, Span
from .progress import Tally, display
from .schedule import CostHint, Grouping, Job, Schedule, schedule
from .simulation import Simulation, Yielded

C = TypeVar("C")
R = TypeVar("R")

_SHOW_S = 0.25  # between two looks at the progress, if nothing finishes
# Tasks that take this long do not show what a task costs: on two cores 1.2 ms on ray,
# and 60 us of CPU on embedded, more where whoever is woken finds its caches cold. On
# inline there is nothing to win.
_TASK_S = {"ray": 0.05, "embedded": 0.008}


@dataclass(frozen=True)
class FailedRun:
    """What ``on_error="return"`` yields in place of a result."""

    index: int
    config: Any
    exception: Exception
    attempts: int = 1


@dataclass(frozen=True)
class Partial:
    """What a simulation that is a generator has yielded, or returned at its end."""

    index: int  # of the simulation
    number: int  # 0, 1, ... in the order in which they were yielded
    value: Any
    is_last: bool  # True: ``value`` is what the generator returned
    attempt: int = 0  # a retry yields from number 0 on again


def run(
    simulate: Callable[..., R],
    configs: Iterable[C],
    *,
    cost: Sequence[float] | Callable[[C], float] | Literal["learn"] | None = None,
    max_in_flight: int | None = None,
    ordered: bool = False,
    timeout: float | None = None,
    retries: int = 0,
    on_error: Literal["raise", "return"] = "raise",
    run_seed: int | Sequence[int] = 0,
    progress: bool = False,
) -> Run[R]:
    """Call ``simulate(config)`` for every configuration, each as a task.

    Results do not depend on the number of workers, nor on which of them ran what. A
    simulation that raises, whose process dies, or that exceeds its ``timeout`` costs
    the others nothing.
    Where simulations are so short that a task costs as much (below 4 ms; on ray, 25),
    several travel in one, and fewer towards the end; with a ``timeout``, none do.

    Args:
        simulate: a function of one configuration. If it has a parameter ``seed``, it
            also gets ``seed=numpy.random.SeedSequence(run_seed, spawn_key=(index,))``.
            If it is a generator function, what it yields arrives as it is made, each
            as a :class:`Partial`; the last one holds what it returned.
        configs: any iterable, also an endless one: drawn from as there is room.
        cost: what each configuration is expected to cost, in any unit: numbers in the
            order of ``configs``, a function, or ``"learn"``: seconds that it took in
            earlier runs of this process. The most expensive start first, so that none
            of them is left running alone at the end. Of an iterator, twice
            ``max_in_flight`` at a time are put in order.
        max_in_flight: simulations submitted and not finished; default 16 tasks a CPU.
        ordered: yield in the order of ``configs``, not as they finish. Without
            ``cost``, others get ahead of a slow one by 4 times ``max_in_flight``.
        timeout: seconds that one simulation may run, from when it begins. Its process
            is then ended, and it has failed with a :class:`RunTimeoutError`. Waiting
            until what a generator has yielded is taken, 64 items ahead, counts too.
            The inline engine has no process to end: there a function fails once it
            has returned, and generators are not timed.
        retries: how often a failed simulation is started again, with its own seed.
        on_error: ``"raise"`` the first failure from the iteration, which cancels the
            rest, or ``"return"`` a :class:`FailedRun` in its place.
        progress: show a bar with rate and time left; lines, where no terminal is.

    Returns:
        A :class:`Run`: iterate it. Nothing starts before the first ``next``.

    Raises:
        ValueError: ``configs`` is empty, a cost is negative, or an option is out of
            range; at the call, or where an iterator is drawn from.
    """
    simulation = _check(simulate, timeout, retries, on_error, run_seed)
    num_workers = max(1, int(skate.cluster_resources().get("CPU", 1)))
    if max_in_flight is not None and max_in_flight < 1:
        raise ValueError(f"max_in_flight={max_in_flight!r}; expected at least 1.")
    learned = None
    hint: CostHint
    if isinstance(cost, str):
        if cost != "learn":
            raise ValueError(
                f"cost={cost!r}; expected numbers, a function, or 'learn'."
            )
        hint = learned = learned_costs(simulate)
    else:
        hint = cost
    in_flight = max_in_flight or 16 * num_workers
    plan = schedule(configs, hint, window=2 * in_flight)
    # In order of cost, the one that all others wait for may start last.
    all_are_held = cost is not None and plan.total is not None
    return Run(
        simulation,
        plan,
        learned=learned,
        num_workers=num_workers,
        max_in_flight=in_flight,
        counts_jobs=max_in_flight is not None,
        max_ahead=math.inf if all_are_held else 4 * in_flight,
        ordered=ordered,
        timeout=timeout,
        retries=retries,
        raise_failures=on_error == "raise",
        progress=progress,
    )


def _check(
    simulate: Any, timeout: Any, retries: int, on_error: str, run_seed: Any
) -> Simulation:
    if not callable(simulate):
        raise TypeError(f"simulate must be a function, not {simulate!r}.")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout={timeout!r}; expected seconds above 0, or None.")
    if on_error not in ("raise", "return"):
        raise ValueError(f'on_error={on_error!r}; expected "raise" or "return".')
    if retries < 0:
        raise ValueError(f"retries={retries!r}; expected 0 or more.")
    np.random.SeedSequence(run_seed)  # refuses what can be no seed
    return Simulation.of(simulate, run_seed)


class Run(Generic[R]):
    """The simulations of one :func:`run`; iterate it once for their results."""

    def __init__(
        self,
        simulation: Simulation,
        plan: Schedule,
        *,
        learned: LearnedCosts | None,
        num_workers: int,
        max_in_flight: int,
        counts_jobs: bool,
        max_ahead: float,
        ordered: bool,
        timeout: float | None,
        retries: int,
        raise_failures: bool,
        progress: bool,
    ) -> None:
        self._engine = skate.init(ignore_reinit_error=True).engine
        processes = self._engine != "inline"
        self._dispatcher = Dispatcher(simulation, timeout, processes=processes)
        self._streams = simulation.is_generator
        self._jobs = iter(plan)
        self._left: float = math.inf if plan.total is None else plan.total
        self._learned = learned
        self._num_workers = num_workers
        self._max_in_flight = max_in_flight
        self._counts_jobs = counts_jobs  # else tasks, of several jobs perhaps
        self._unfinished = 0  # jobs
        self._max_ahead = max_ahead
        self._retries = retries
        self._raise = raise_failures
        self._grouping: Grouping | None = None
        self._held: dict[int, list[Any]] = {}  # results that wait for an earlier one
        self._ledger = Ledger()
        self._tally = Tally(plan.total, plan.total_cost)
        self._retried = 0
        self._display = display(plan.total) if progress else None
        self._results = self._in_order() if ordered else self._as_finished()

    def __iter__(self) -> Iterator[R]:
        return self._results

    def __next__(self) -> R:
        result: R = next(self._results)  # or a FailedRun, if the caller asked
        return result

    def close(self) -> None:
        """Cancel what has not finished. May be called twice."""
        self._results.close()
        self._dispatcher.cancel()

    def __enter__(self) -> Run[R]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def stats(self) -> dict[str, float]:
        """Counts and seconds so far.

        ``runs`` finished, ``failed``, ``retried``, ``workers`` that took part,
        ``wall_s`` since the first start, ``busy_s`` inside ``simulate`` over all
        workers, ``cpu_s`` of it that they computed, ``useful``: the share of the time
        of all CPUs of the session that they were in ``simulate``, and ``longest_s``,
        the longest single run.
        """
        return {
            "runs": self._tally.done - self._tally.failed,
            "failed": self._tally.failed,
            "retried": self._retried,
            **self._ledger.stats(self._num_workers),
        }

    @property
    def spans(self) -> list[Span]:
        """Who ran what, and when; of a long run, the last 200,000 simulations."""
        return self._ledger.spans

    def plot(self, path: str | Path) -> None:
        """Draw which worker ran what, and when, into an image file (matplotlib)."""
        from .plot import gantt

        gantt(self.spans, path, useful=self.stats()["useful"])

    # results ----------------------------------------------------------------------

    def _as_finished(self) -> Generator[Any, None, None]:
        for _, result, _ in self._all():
            yield result

    def _in_order(self) -> Generator[Any, None, None]:
        expected = 0
        ended: set[int] = set()
        for index, result, is_last in self._all():
            if index != expected:
                self._held.setdefault(index, []).append(result)
                if is_last:
                    ended.add(index)
                continue
            yield result
            while is_last:  # the next one may be here, whole or in part
                expected += 1
                yield from self._held.pop(expected, ())
                is_last = expected in ended
                ended.discard(expected)

    def _all(self) -> Iterator[tuple[int, Any, bool]]:
        """Index and result of what comes, and whether it is its simulation's last."""
        self._ledger.begin(perf_counter())
        if self._engine in _TASK_S:
            self._grouping = Grouping(self._num_workers, _TASK_S[self._engine])
            if self._counts_jobs:
                share = self._max_in_flight // (2 * self._num_workers)
                self._grouping.most = max(1, share)
        try:
            while True:
                self._fill()
                if not len(self._dispatcher):
                    return
                tick = None if self._display is None else _SHOW_S
                for job, outcome in self._dispatcher.outcomes(tick):
                    settled = self._settle(job, outcome)
                    if settled is not None:
                        yield settled
                if self._display is not None:
                    self._display.show(self._tally)
        except GeneratorExit:  # dropped, or closed: this may run inside the GC
            raise
        except BaseException:
            self._dispatcher.cancel()
            raise
        finally:
            if self._display is not None:
                self._display.close(self._tally)

    def _fill(self) -> None:
        while self._has_room():
            group = self._next_group()
            if not group:
                return
            self._left -= len(group)
            self._unfinished += len(group)
            self._dispatcher.start(group)

    def _next_group(self) -> list[Job]:
        if self._grouping is not None and self._dispatcher.can_group:
            return self._grouping.take(self._jobs, self._left)
        job = next(self._jobs, None)
        return [] if job is None else [job]

    def _has_room(self) -> bool:
        under_way = self._unfinished if self._counts_jobs else len(self._dispatcher)
        ahead = self._unfinished + len(self._held)
        return under_way < self._max_in_flight and ahead < self._max_ahead

    def _settle(self, job: Job, outcome: Outcome) -> tuple[int, Any, bool] | None:
        """Index, what the caller gets, and whether it is the last; None: not yet."""
        if isinstance(outcome, Yielded):
            number = job.partials - 1
            partial = Partial(job.index, number, outcome.value, False, job.attempt)
            return job.index, partial, False
        self._ledger.note(job.index, outcome, self._dispatcher.arrived)
        if isinstance(outcome, Failed):
            return self._settle_failed(job, outcome)
        seconds = outcome.end - outcome.start
        if self._learned is not None:
            self._learned.record(job.config, seconds)
        if self._grouping is not None:
            self._grouping.record(job, seconds)
        self._count(job)
        result = outcome.result
        if self._streams:
            result = Partial(job.index, job.partials, result, True, job.attempt)
        return job.index, result, True

    def _settle_failed(self, job: Job, outcome: Failed) -> tuple[int, Any, bool] | None:
        if job.attempt < self._retries:
            job.attempt += 1
            job.partials = 0
            self._retried += 1
            self._dispatcher.start([job])
            return None
        self._tally.failed += 1
        self._count(job)
        if self._raise:
            raise outcome.error
        error: SkateError = outcome.error
        failed = FailedRun(job.index, job.config, error, job.attempt + 1)
        return job.index, failed, True

    def _count(self, job: Job) -> None:
        self._unfinished -= 1
        self._tally.done += 1
        self._tally.done_cost += job.cost or 0.0
