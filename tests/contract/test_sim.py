import ctypes
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Signal

import skate
from skate import sim
from skate.serve import deploy

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


# run ------------------------------------------------------------------------------


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


# rollouts -------------------------------------------------------------------------


class Counter:
    """Counts steps; every third ends it: terminated and truncated in turn."""

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            self.episodes = 0
            self.first = seed % 1000
        self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        ends = self.steps == 3
        self.episodes += ends
        terminated = ends and self.episodes % 2 == 1
        return self._observation(), float(action[0]), terminated, ends ^ terminated, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.first, self.steps], np.float32)


def echo(observations: np.ndarray) -> dict[str, np.ndarray]:
    return {"actions": observations[:, 1:], "twice": 2 * observations[:, 1]}


class Versioned:
    """Every action is the version of the weights that chose it."""

    def __init__(self) -> None:
        self.version = 0.0

    def evaluate(self, observations: np.ndarray) -> np.ndarray:
        return np.full((len(observations), 1), self.version, np.float32)

    def set_weights(self, version: float) -> None:
        self.version = version


def test_a_trajectory_holds_every_step_of_every_environment() -> None:
    with sim.rollouts(
        Counter, echo, num_workers=1, num_envs_per_worker=2, rollout_length=7
    ) as rollouts:
        one = next(rollouts)
    steps = [0, 1, 2, 0, 1, 2, 0]
    assert one.observations.shape == (8, 2, 2)
    assert one.observations[:, 0, 1].tolist() == [*steps, 1]
    assert one.actions.shape == (7, 2, 1)
    assert one.rewards[:, 1].tolist() == steps
    assert one.extras["twice"][:, 0].tolist() == [2 * s for s in steps]
    assert np.flatnonzero(one.terminated[:, 0]).tolist() == [2]
    assert np.flatnonzero(one.truncated[:, 0]).tolist() == [5]
    assert one.next_observations[:, 0, 1].tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert one.episode_returns.tolist() == [3.0] * 4
    assert one.policy_versions.tolist() == [0] * 7


def test_a_rollout_goes_on_where_the_last_one_ended() -> None:
    with sim.rollouts(
        Counter, echo, num_workers=1, num_envs_per_worker=1, rollout_length=2
    ) as rollouts:
        first, second, third = (next(rollouts) for _ in range(3))
    np.testing.assert_array_equal(first.observations[-1], second.observations[0])
    np.testing.assert_array_equal(second.observations[-1], third.observations[0])
    assert second.episode_returns.tolist() == [3.0]


def test_environments_are_seeded_by_their_place() -> None:
    def first_observations(num_workers: int) -> dict[int, list[float]]:
        with sim.rollouts(
            Counter,
            echo,
            num_workers=num_workers,
            num_envs_per_worker=2,
            rollout_length=1,
            seed=5,
        ) as rollouts:
            seen: dict[int, list[float]] = {}
            while len(seen) < num_workers:
                one = next(rollouts)
                seen.setdefault(one.worker, one.observations[0, :, 0].tolist())
            return seen

    one, three = first_observations(1), first_observations(3)
    assert three[0] == one[0]
    assert len({x for firsts in three.values() for x in firsts}) == 6


def test_every_step_records_the_version_that_chose_its_action() -> None:
    with (
        deploy(Versioned) as deployment,
        sim.rollouts(
            Counter,
            deployment,
            num_workers=2,
            num_envs_per_worker=3,
            rollout_length=20,
        ) as rollouts,
    ):
        taken = []
        for version in range(1, 9):
            taken.append(next(rollouts))
            assert deployment.update(float(version)) == version
        for one in taken:
            chosen = np.broadcast_to(one.policy_versions[:, None, None], (20, 3, 1))
            np.testing.assert_array_equal(one.actions, chosen)
        assert len({v for one in taken for v in one.policy_versions.tolist()}) > 1
        # Nothing but the deployment chose an action: it counted at least those taken,
        # and at most one more rollout of each worker.
        states = deployment.stats()["states"]
        assert len(taken) * 60 <= states <= (len(taken) + 2) * 60


class Faulty(Counter):
    """Misbehaves at its third step, in the first process that gets there only."""

    def __init__(self, path: Path | None, fault: Callable[[], Any]) -> None:
        self.path, self.fault = path, fault
        self.total = 0

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.total += 1
        if self.total == 3 and is_first(self.path):
            wrong = self.fault()
            if wrong is not None:
                return wrong, 0.0, False, False, {}
        return super().step(action)


def is_first(path: Path | None) -> bool:
    if path is None:
        return True
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def hang_in_python() -> None:
    time.sleep(0.6)


def hang_in_c() -> None:
    while True:
        ctypes.PyDLL(None).sleep(100)  # holds the GIL; signals do not end it


def die() -> None:
    os._exit(1)


def fail() -> None:
    raise OSError("the cable is out")


def small(env: Any, policy: Any = echo, **options: Any) -> sim.Rollouts:
    defaults = {"num_workers": 1, "num_envs_per_worker": 2, "rollout_length": 5}
    return sim.rollouts(env, policy, **(defaults | options))


def test_a_constructor_that_raises_is_told_once(tmp_path: Path) -> None:
    def broken() -> Any:
        raise OSError("no such simulator")

    with pytest.raises(OSError, match="no such simulator"):
        small(broken, num_workers=2)


def test_an_environment_that_raises_is_named() -> None:
    with small(lambda: Faulty(None, fail)) as rollouts:
        with pytest.raises(sim.RolloutError, match="the cable is out") as caught:
            next(rollouts)
        error = caught.value
        assert "worker 0, environment 0, step 2: the environment raised" in str(error)
        assert (error.worker, error.env_index, error.step) == (0, 0, 2)


def test_an_environment_that_raises_can_be_replaced_alone(tmp_path: Path) -> None:
    env = functools.partial(Faulty, tmp_path / "failed", fail)
    with small(env, on_error="replace") as rollouts:
        one, two = next(rollouts), next(rollouts)
        assert rollouts.replaced_envs() == 1
    check_replaced(one)
    assert two.valid.all()


def check_replaced(one: sim.Trajectory) -> None:
    """Environment 0 has another in its place from step 2 on; 1 is as it was."""
    assert np.argwhere(~one.valid).tolist() == [[2, 0]]
    assert one.truncated[2, 0]
    assert one.observations[:, 1, 1].tolist() == [0, 1, 2, 0, 1, 2]
    assert one.observations[:, 0, 1].tolist() == [0, 1, 2, 0, 1, 2]
    assert one.observations[2, 0, 0] != one.observations[3, 0, 0]  # another seed
    assert one.next_observations[2, 0].tolist() == one.observations[2, 0].tolist()


def test_an_environment_that_hangs_is_replaced_alone(tmp_path: Path) -> None:
    env = functools.partial(Faulty, tmp_path / "hung", hang_in_python)
    with small(env, step_timeout=0.3) as rollouts:
        check_replaced(next(rollouts))
        assert rollouts.stats()["restarts"] == 0


@pytest.mark.differs(inline=NO_PROCESS)
@pytest.mark.parametrize("fault", [hang_in_c, die])
def test_a_worker_that_is_lost_is_replaced_alone(
    tmp_path: Path, fault: Callable[[], None]
) -> None:
    env = functools.partial(Faulty, tmp_path / "lost", fault)
    with small(env, step_timeout=0.1, num_workers=2, max_ahead=2) as rollouts:
        taken = {}
        while len(taken) < 2:  # the lost one had not finished its first rollout
            one = next(rollouts)
            taken[one.worker] = one
        assert rollouts.stats()["restarts"] == 1
    for one in taken.values():
        assert one.valid.all()
        assert one.actions.tolist() == one.observations[:-1, :, 1:].tolist()


@pytest.mark.differs(inline=NO_PROCESS)
def test_a_worker_that_always_dies_ends_the_rollouts() -> None:
    with (
        small(lambda: Faulty(None, die)) as rollouts,
        pytest.raises(skate.exceptions.ActorDiedError),
    ):
        next(rollouts)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros(3, np.float32), "step 2: the environment gave an observation of"),
        (np.array(["a", "b"]), "observation of dtype <U1; they had float32 before"),
        (np.full(2, np.nan, np.float32), "step 2: the environment gave a observation"),
    ],
)
def test_wrong_observations_are_refused(wrong: np.ndarray, message: str) -> None:
    with (
        small(lambda: Faulty(None, lambda: wrong)) as rollouts,
        pytest.raises(sim.RolloutError, match=f"environment 0, .*{message}"),
    ):
        next(rollouts)


def test_observations_that_leave_their_space_are_refused() -> None:
    class Bounded(Counter):
        class observation_space:
            low, high = np.zeros(2), np.array([1000.0, 2.0])

    with (
        small(Bounded, num_envs_per_worker=1) as rollouts,
        pytest.raises(sim.RolloutError, match=r"environment 0, step 2: .*outside of"),
    ):
        next(rollouts)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda x: np.zeros((3, 1)), r"returned actions of shape \(3, 1\) for 2"),
        (lambda x: {"values": x[:, 0]}, r"returned \['values'\], without 'actions'"),
        (lambda x: x[:, 1:] / 0.0 * 0.0, "environment 0, step 0: .*not finite"),
        (lambda x: x[:, int(x[0, 1]) % 2 :], "had \\(2, 2\\) and float32 before"),
    ],
)
def test_a_policy_that_returns_nonsense_is_refused(policy: Any, message: str) -> None:
    def quiet(observations: np.ndarray) -> Any:
        with np.errstate(all="ignore"):
            return policy(observations)

    with (
        small(Counter, quiet) as rollouts,
        pytest.raises(sim.RolloutError, match=message),
    ):
        next(rollouts)


def test_whole_episodes_come_as_they_end() -> None:
    with small(Counter, rollout_length=None, num_envs_per_worker=2) as rollouts:
        taken = [next(rollouts) for _ in range(4)]
    assert [one.env_index for one in taken] == [0, 1, 0, 1]
    for one in taken:
        assert one.observations.shape == (4, 1, 2)
        assert one.observations[:, 0, 1].tolist() == [0, 1, 2, 3]
        assert one.actions[:, 0, 0].tolist() == [0, 1, 2]
        assert one.extras["twice"][:, 0].tolist() == [0, 2, 4]
        assert one.episode_returns.tolist() == [3.0]
    assert taken[0].terminated[-1, 0]
    assert taken[2].truncated[-1, 0]
    assert taken[0].observations[0, 0, 0] != taken[1].observations[0, 0, 0]


def test_a_policy_that_is_a_function_can_be_updated() -> None:
    def constant(value: float) -> Any:
        return lambda observations: np.full((len(observations), 1), value)

    with small(Counter, constant(0.0)) as rollouts:
        assert next(rollouts).lag == 0
        assert rollouts.update(constant(1.0)) == 1
        late, new = next(rollouts), next(rollouts)
        assert (late.policy_versions.max(), late.lag) == (0, 1)
        assert (new.policy_versions.min(), new.lag) == (1, 0)
        assert new.actions.min() == 1.0
        stats = rollouts.stats()
    assert (stats["lag_max"], stats["rollouts"], stats["steps"]) == (1, 3, 30)


def count_vector(mode: str) -> Any:
    gymnasium = pytest.importorskip("gymnasium")

    class Count(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 3, (1,))
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            self.steps = 0
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> Any:
            self.steps += 1
            ends = self.steps == 3
            return np.full(1, self.steps, np.float32), 1.0, ends, False, {}

    modes = gymnasium.vector.AutoresetMode
    return gymnasium.vector.SyncVectorEnv([Count] * 2, autoreset_mode=modes(mode))


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_vector_environments_of_gymnasium_are_hosted(mode: str) -> None:
    def act(observations: np.ndarray) -> np.ndarray:
        return np.ones(len(observations), np.int64)

    with sim.rollouts(
        functools.partial(count_vector, mode), act, num_workers=1, rollout_length=6
    ) as rollouts:
        one = next(rollouts)
    seen = one.observations[:, 1, 0].tolist()
    ended = np.flatnonzero(one.terminated[:, 1]).tolist()
    assert one.final_observations.ravel().tolist() == [3.0] * (2 * len(ended))
    assert one.next_observations[one.terminated].ravel().tolist() == [3.0] * (
        2 * len(ended)
    )
    if mode == "NextStep":
        assert seen == [0, 1, 2, 3, 0, 1, 2]
        assert np.flatnonzero(~one.valid[:, 1]).tolist() == [3]
    else:
        assert seen == [0, 1, 2, 0, 1, 2, 0]
        assert ended == [2, 5]
        assert one.valid.all()


def two_agents() -> Any:
    pytest.importorskip("pettingzoo")
    from gymnasium.spaces import Box, Discrete
    from pettingzoo import ParallelEnv

    class Race(ParallelEnv):
        """Agent "b" is out one step before "a"."""

        metadata = {"name": "race"}  # noqa: RUF012
        possible_agents = ["a", "b"]  # noqa: RUF012

        def observation_space(self, agent: str) -> Any:
            return Box(0, 10, (2,))

        def action_space(self, agent: str) -> Any:
            return Discrete(3)

        def reset(self, seed: int | None = None, options: Any = None) -> Any:
            self.agents, self.steps = ["a", "b"], 0
            return self._see(), {agent: {} for agent in self.agents}

        def _see(self) -> Any:
            places = {"a": 0, "b": 1}
            return {
                agent: np.array([places[agent], self.steps], np.float32)
                for agent in self.agents
            }

        def step(self, actions: dict[str, Any]) -> Any:
            assert set(actions) == set(self.agents)
            self.steps += 1
            seen = self._see()
            last = {"a": 3, "b": 2}
            done = {agent: self.steps == last[agent] for agent in self.agents}
            rewards = {agent: float(actions[agent]) for agent in self.agents}
            no = dict.fromkeys(self.agents, False)
            infos = {agent: {} for agent in self.agents}
            self.agents = [agent for agent in self.agents if not done[agent]]
            return seen, rewards, done, no, infos

    return Race()


def test_agents_of_a_parallel_environment_are_columns() -> None:
    def act(observations: np.ndarray) -> np.ndarray:
        return observations[:, 0].astype(np.int64) + 1  # 1 for a, 2 for b

    with small(two_agents, act, num_envs_per_worker=2, rollout_length=4) as rollouts:
        one = next(rollouts)
    assert one.agents == ("a", "b", "a", "b")
    assert one.observations.shape == (5, 4, 2)
    assert one.observations[:, 0, 1].tolist() == [0, 1, 2, 0, 1]
    assert one.rewards[:, 2].tolist() == [1, 1, 1, 1]
    assert one.rewards[:, 3].tolist() == [2, 2, 0, 2]
    assert np.flatnonzero(~one.valid[:, 1]).tolist() == [2]
    assert np.flatnonzero(one.terminated[:, 1]).tolist() == [1]
    assert np.flatnonzero(one.terminated[:, 0]).tolist() == [2]
    assert one.episode_returns.tolist() == [4, 4, 3, 3]


def test_wrong_options_of_rollouts_are_refused() -> None:
    with pytest.raises(ValueError, match="num_workers=0; expected at least 1"):
        sim.rollouts(
            Counter, echo, num_workers=0, num_envs_per_worker=1, rollout_length=1
        )
    for wrong, message in [
        ({"rollout_length": 0}, "rollout_length=0; expected at least 1"),
        ({"step_timeout": 0}, "step_timeout=0; expected seconds above 0"),
        ({"on_error": "skip"}, 'expected "raise" or "replace"'),
    ]:
        with pytest.raises(ValueError, match=message):
            small(Counter, **wrong)
    with pytest.raises(TypeError, match="policy must be a function or a deployment"):
        small(Counter, 3)
    pytest.importorskip("gymnasium")
    with pytest.raises(ValueError, match=r"no environment 'Pendulun-v1'.*Pendulum-v1"):
        small("Pendulun-v1")
