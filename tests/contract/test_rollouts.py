import ctypes
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skate
from skate import sim
from skate.serve import deploy

pytestmark = pytest.mark.usefixtures("engine")
NO_PROCESS = "has no process to end"


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
    import gymnasium

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
    pytest.importorskip("gymnasium")

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
    pytest.importorskip("pettingzoo")

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
