import ctypes
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Signal

import skate
from skate import sim

pytestmark = pytest.mark.usefixtures("engine")
NO_PROCESS = "ends the program: simulations have no process of their own"


def square(x: int) -> int:
    return x * x


def draw(config: int, seed: np.random.SeedSequence) -> float:
    return float(np.random.default_rng(seed).normal())


def fail_on_odd(x: int) -> int:
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


class FailFirst:
    """Fails until it has been called often enough; the count is in a file."""

    def __init__(self, path: Path, failures: int) -> None:
        self.path, self.failures = path, failures

    def __call__(self, config: int) -> int:
        with self.path.open("a") as file:
            file.write("x")
        if len(self.path.read_text()) <= self.failures:
            raise OSError("not yet")
        return config


class DrawLater(FailFirst):
    def __init__(self, path: Path) -> None:
        super().__init__(path, failures=3)

    def __call__(self, config: int, seed: np.random.SeedSequence) -> float:
        super().__call__(config)
        return draw(config, seed)


class HangFirst:
    """The first call of all hangs without letting any other thread run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, config: int) -> int:
        try:
            self.path.touch(exist_ok=False)
        except FileExistsError:
            return config
        while True:
            ctypes.PyDLL(None).sleep(100)  # holds the GIL; signals do not end it


class DieFirst:
    """The first call of all ends its process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, config: int) -> int:
        try:
            self.path.touch(exist_ok=False)
        except FileExistsError:
            return config
        os._exit(1)


def test_every_configuration_is_simulated_once() -> None:
    assert sorted(sim.run(square, range(50))) == [x * x for x in range(50)]


def test_ordered_results_come_in_the_order_of_the_configurations() -> None:
    run = sim.run(square, range(20), cost=list(range(20)), ordered=True)
    assert list(run) == [x * x for x in range(20)]


def test_the_most_expensive_simulations_start_first() -> None:
    configs = [3, 9, 1, 7]
    assert list(sim.run(square, configs, cost=lambda x: x, max_in_flight=1)) == [
        81,
        49,
        9,
        1,
    ]


def test_configurations_are_drawn_as_there_is_room() -> None:
    drawn = []

    def configs() -> Any:
        for x in itertools.count():
            drawn.append(x)
            yield x

    run = sim.run(square, configs(), max_in_flight=3, ordered=True)
    assert [next(run) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(drawn) <= 5 + 4 * 3


def test_seeds_depend_on_the_index_alone() -> None:
    expected = [
        draw(0, np.random.SeedSequence(7, spawn_key=(index,))) for index in range(6)
    ]
    for options in ({}, {"cost": list(range(6))}, {"max_in_flight": 1}):
        run = sim.run(draw, range(6), run_seed=7, ordered=True, **options)
        assert list(run) == expected


def test_a_failure_is_raised_with_the_type_of_the_simulator() -> None:
    with pytest.raises(ValueError, match="3 is odd"):
        list(sim.run(fail_on_odd, [0, 2, 3], ordered=True))


def test_failures_can_be_returned_among_the_results() -> None:
    run = sim.run(fail_on_odd, [0, 1, 2], on_error="return", ordered=True)
    zero, failed, two = run
    assert (zero, two) == (0, 2)
    assert isinstance(failed, sim.FailedRun)
    assert (failed.index, failed.config) == (1, 1)
    assert isinstance(failed.exception, ValueError)
    assert run.stats()["failed"] == 1


def test_a_failed_simulation_is_retried(tmp_path: Path) -> None:
    run = sim.run(FailFirst(tmp_path / "calls", failures=2), [5], retries=2)
    assert list(run) == [5]
    assert run.stats()["retried"] == 2


def test_retries_come_to_an_end(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not yet"):
        list(sim.run(FailFirst(tmp_path / "calls", failures=2), [5], retries=1))


@pytest.mark.differs(inline=NO_PROCESS)
def test_a_simulator_that_dies_is_started_again(tmp_path: Path) -> None:
    run = sim.run(DieFirst(tmp_path / "calls"), [1, 2, 3], retries=1)
    assert sorted(run) == [1, 2, 3]
    assert run.stats()["retried"] == 1


@pytest.mark.differs(inline=NO_PROCESS)
def test_a_simulator_that_dies_fails_its_own_run_only(tmp_path: Path) -> None:
    run = sim.run(DieFirst(tmp_path / "calls"), [1, 2, 3], on_error="return")
    results = list(run)
    failed = [r for r in results if isinstance(r, sim.FailedRun)]
    assert len(failed) == 1
    assert isinstance(failed[0].exception, skate.exceptions.WorkerCrashedError)
    assert len(results) == 3


def test_a_run_tells_where_its_time_went(tmp_path: Path) -> None:
    run = sim.run(square, range(10))
    list(run)
    stats = run.stats()
    assert (stats["runs"], stats["failed"], stats["retried"]) == (10, 0, 0)
    assert 0 < stats["longest_s"] <= stats["busy_s"]
    assert stats["workers"] >= 1
    assert 0 < stats["useful"] <= 1
    pytest.importorskip("matplotlib")
    run.plot(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0.0}, "timeout=0.0; expected seconds above 0"),
        ({"run_seed": -1}, "non-negative"),
        ({"cost": [1.0, -2.0]}, "the cost of run 1 is -2.0; expected a number of zero"),
        ({"cost": lambda x: float("nan")}, "the cost of run 0 is nan"),
        ({"cost": "guess"}, "cost='guess'; expected numbers, a function, or 'learn'"),
        ({"on_error": "ignore"}, 'expected "raise" or "return"'),
        ({"retries": -1}, "retries=-1; expected 0 or more"),
        ({"max_in_flight": 0}, "max_in_flight=0; expected at least 1"),
        ({"cost": [1.0]}, "cost has 1 numbers for 2 configurations"),
    ],
)
def test_wrong_options_of_run_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sim.run(square, [1, 2], **options)


def test_no_configurations_and_no_function_are_refused() -> None:
    with pytest.raises(ValueError, match="configs is empty"):
        sim.run(square, [])
    with pytest.raises(TypeError, match="simulate must be a function, not 3"):
        sim.run(3, [1])  # type: ignore[arg-type]


def test_a_wrong_cost_of_an_iterator_is_refused_where_it_is_drawn() -> None:
    run = sim.run(square, iter([1, 2]), cost=lambda x: -x)
    with pytest.raises(ValueError, match="the cost of run 0 is -1"):
        next(run)


def test_an_endless_iterator_is_put_in_order_piece_by_piece() -> None:
    configs = itertools.cycle([1, 3, 2, 4])
    run = sim.run(square, configs, cost=lambda x: x, max_in_flight=2, ordered=True)
    assert [next(run) for _ in range(8)] == [1, 9, 4, 16] * 2


def test_costs_are_learned_from_earlier_runs(engine: str) -> None:
    def wait(config: dict[str, Any]) -> float:
        time.sleep(config["s"])
        return float(config["s"])

    configs = [{"s": s, "on": engine} for s in (0.0, 0.03, 0.01, 0.02)]
    first = sim.run(wait, configs, cost="learn", max_in_flight=1)
    assert list(first) == [0.0, 0.03, 0.01, 0.02]  # nothing is known: as they come
    second = sim.run(wait, configs, cost="learn", max_in_flight=1)
    assert list(second) == [0.03, 0.02, 0.01, 0.0]


def count_up(config: int, seed: np.random.SeedSequence) -> Iterator[int]:
    yield from range(config)
    return config * 10


def test_a_generator_streams_what_it_yields() -> None:
    run = sim.run(count_up, [2, 0], ordered=True)
    assert [(p.index, p.number, p.value, p.is_last) for p in run] == [
        (0, 0, 0, False),
        (0, 1, 1, False),
        (0, 2, 20, True),
        (1, 0, 0, True),
    ]
    assert run.stats()["runs"] == 2


def test_partial_results_arrive_before_their_simulation_ends() -> None:
    signal = Signal.remote()

    def simulate(config: int) -> Iterator[int]:
        yield config
        skate.get(signal.wait.remote())

    run = sim.run(simulate, [5])
    assert next(run).value == 5
    signal.set.remote()
    assert next(run).is_last


def hang_on_odd(x: int) -> int:
    time.sleep(0.4 if x % 2 else 0.0)
    return x


def test_a_simulation_that_takes_too_long_fails_alone() -> None:
    run = sim.run(hang_on_odd, range(4), timeout=0.2, on_error="return", ordered=True)
    results = list(run)
    assert results[::2] == [0, 2]
    for failed in results[1::2]:
        assert isinstance(failed, sim.FailedRun)
        assert isinstance(failed.exception, sim.RunTimeoutError)
        assert "took longer than timeout=0.2 s" in str(failed.exception)
    assert run.stats()["failed"] == 2
    assert len(run.spans) == 4


@pytest.mark.differs(inline="has no process to end")
def test_a_simulation_that_hangs_in_c_is_ended_and_tried_again(tmp_path: Path) -> None:
    run = sim.run(HangFirst(tmp_path / "calls"), [7, 8], timeout=0.3, retries=1)
    assert sorted(run) == [7, 8]
    assert run.stats()["retried"] == 1


def test_time_in_the_queue_is_not_a_simulation_s_own() -> None:
    run = sim.run(pause, [0.05] * 12, timeout=0.25)
    assert len(list(run)) == 12


def pause(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_a_run_that_is_closed_starts_nothing_more(tmp_path: Path) -> None:
    with sim.run(square, itertools.count()) as run:
        next(run)
    with pytest.raises(StopIteration):
        next(run)


def test_results_do_not_depend_on_failures(tmp_path: Path) -> None:
    plain = list(sim.run(draw, range(8), run_seed=(1, 2), ordered=True))
    run = sim.run(
        DrawLater(tmp_path / "calls"),
        range(8),
        run_seed=(1, 2),
        retries=3,
        ordered=True,
    )
    assert list(run) == plain
    assert run.stats()["retried"] > 0


def test_progress_shows_rate_and_failures(capsys: pytest.CaptureFixture[str]) -> None:
    list(sim.run(fail_on_odd, range(4), on_error="return", progress=True))
    shown = capsys.readouterr().err
    assert "4/4 simulations in" in shown
    assert "/s, 2 failed" in shown
