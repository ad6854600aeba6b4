"""What ``sim.run`` sends to a worker: one simulation, or a group of short ones."""

from __future__ import annotations

import functools
import inspect
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import numpy as np

import skate
from skate.exceptions import TaskError


class Finished(NamedTuple):
    """A simulation's result, who ran it, and when by that process's monotonic clock."""

    worker: str
    result: Any
    start: float
    end: float
    cpu_s: float


class Began(NamedTuple):
    """The first item of a streamed simulation."""

    worker: str
    start: float


class Yielded(NamedTuple):
    """An item of a simulation that is a generator."""

    value: Any


class Simulation(NamedTuple):
    """The user's function and what decides its seeds."""

    function: Callable[..., Any]
    run_seed: int | Sequence[int]
    takes_seed: bool

    @classmethod
    def of(
        cls, function: Callable[..., Any], run_seed: int | Sequence[int]
    ) -> Simulation:
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):  # some builtins have none
            return cls(function, run_seed, False)
        return cls(function, run_seed, "seed" in parameters)

    @property
    def is_generator(self) -> bool:
        function = self.function
        return inspect.isgeneratorfunction(function) or inspect.isgeneratorfunction(
            getattr(function, "__call__", None)  # noqa: B004  # not whether, but how
        )

    def call(self, index: int, config: Any) -> Any:
        if not self.takes_seed:
            return self.function(config)
        # From the place among the configurations, never from the worker.
        seed = np.random.SeedSequence(self.run_seed, spawn_key=(index,))
        return self.function(config, seed=seed)

    def as_task(self, body: Callable[..., Any], **options: Any) -> Any:
        """A remote function of ``body`` that statistics call by the user's name."""
        # A partial travels by the name of ``body`` and the user's function alone.
        function = functools.partial(body, self)
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        function.__qualname__ = function.__name__ = name  # type: ignore[attr-defined]
        return skate.remote(function).options(max_retries=0, **options)


# Result, start, end and seconds of CPU: plain, because a named tuple takes a call of
# Python to pickle.
Lap = tuple[Any, float, float, float]


class _Clock:
    """Times simulations one after another: the end of one is the start of the next."""

    __slots__ = ("_cpu", "start", "worker")

    def __init__(self) -> None:
        self.worker = worker_id()
        self._cpu, self.start = time.process_time(), time.perf_counter()

    def lap(self, result: Any) -> Lap:
        end, cpu = time.perf_counter(), time.process_time()
        lap = result, self.start, end, cpu - self._cpu
        self._cpu, self.start = cpu, end
        return lap


def simulate(simulation: Simulation, index: int, config: Any) -> Finished:
    """Run one simulation."""
    clock = _Clock()
    return Finished(clock.worker, *clock.lap(simulation.call(index, config)))


def simulate_in_steps(
    simulation: Simulation, index: int, config: Any
) -> Generator[Began | Yielded | Finished, None, None]:
    """Run one simulation, and say when it begins and what it yields."""
    clock = _Clock()
    yield Began(clock.worker, clock.start)
    result = simulation.call(index, config)
    if inspect.isgenerator(result):
        items = result
        while True:
            try:
                value = next(items)
            except StopIteration as stop:
                result = stop.value
                break
            yield Yielded(value)
    yield Finished(clock.worker, *clock.lap(result))


def simulate_group(
    simulation: Simulation, members: Sequence[tuple[int, Any]]
) -> tuple[str, list[Lap | TaskError]]:
    """Run several, one after another; one that raises costs the others nothing.

    Returns:
        Who ran them, and what has become of each.
    """
    laps: list[Lap | TaskError] = []
    clock = _Clock()
    for index, config in members:
        try:
            laps.append(clock.lap(simulation.call(index, config)))
        except Exception as error:  # it is the outcome of this one
            text = "".join(traceback.format_exception(error))
            name = skate.get_runtime_context().get_task_name() or "simulate"
            laps.append(TaskError.of(error, name, text))
            clock = _Clock()
    return clock.worker, laps


def worker_id() -> str:
    """Which worker this is; the inline engine runs tasks on the driver's own thread."""
    return skate.get_runtime_context().get_worker_id() or "driver"
