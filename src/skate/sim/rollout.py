"""``sim.rollouts``: many environments in many workers, asking one policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

import skate

Array = npt.NDArray[Any]  # any dtype: the environment decides


class Env(Protocol):
    """A gymnasium environment, or anything with these two methods."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]: ...

    def step(self, action: Any, /) -> tuple[Any, Any, bool, bool, dict[str, Any]]: ...


class ServedPolicy(Protocol):
    """A policy that lives elsewhere, such as a ``skate.serve`` deployment."""

    def evaluate(self, states: Array, *, return_version: bool) -> tuple[Any, int]: ...


# From observations (N, ...) to actions (N, ...), or to a dictionary of arrays with
# "actions" among them; the others are kept in ``Trajectory.extras``.
Policy = Callable[[Array], Any] | ServedPolicy


@dataclass(frozen=True)
class Trajectory:
    """What one worker's N environments did in T steps; time first.

    An environment that ends is reset at once, so ``observations[t + 1]`` may be the
    first of a new episode; :attr:`next_observations` has the last of the old one.
    """

    worker: int
    observations: Array  # (T + 1, N, ...); the last row starts the next rollout
    actions: Array  # (T, N, ...), as the policy gave them, before clipping
    rewards: npt.NDArray[np.float32]  # (T, N)
    terminated: npt.NDArray[np.bool_]  # (T, N): the task ended; no value beyond
    truncated: npt.NDArray[np.bool_]  # (T, N): cut short, by a time limit
    final_observations: Array  # (K, ...): of each ended step, in order of (t, n)
    policy_versions: npt.NDArray[np.int64]  # (T,): of the weights that acted
    extras: dict[str, Array]  # (T, N, ...): other outputs of the policy
    episode_returns: npt.NDArray[np.float32]  # (K,): sum of rewards since the reset
    simulate_s: float  # in the environments
    policy_s: float  # waiting for, or computing, actions

    @property
    def next_observations(self) -> Array:
        """What followed each action, before any reset: ``(T, N, ...)``."""
        following: Array = self.observations[1:].copy()
        following[self.terminated | self.truncated] = self.final_observations
        return following


class RolloutWorker:
    """An actor with N environments, stepped one after another by one policy call.

    A process for each environment would cost a wake-up for each step: more than the
    step itself in most environments.
    """

    def __init__(
        self,
        env: str | Callable[[], Env],
        policy: Policy,
        num_envs: int,
        seed: int | Sequence[int],
        worker: int,
    ) -> None:
        self._worker = worker
        self._act = _acting(policy)
        self._envs = [make_env(env) for _ in range(num_envs)]
        self._clip = _clipping(self._envs[0])
        self._returns = np.zeros(num_envs, np.float32)
        # From the place of an environment, not from the process that runs it.
        seeds = np.random.SeedSequence(seed, spawn_key=(worker,))
        self._observations = np.stack(
            [
                np.asarray(env.reset(seed=int(s))[0])
                for env, s in zip(
                    self._envs, seeds.generate_state(num_envs), strict=True
                )
            ]
        )

    def rollout(self, length: int) -> Trajectory:
        """The next ``length`` steps of every environment."""
        n = len(self._envs)
        observations = skate.empty(
            (length + 1, *self._observations.shape), self._observations.dtype
        )
        observations[0] = self._observations
        record = _Record(length, n)
        began = time.perf_counter()
        policy_s = 0.0
        for t in range(length):
            asked = time.perf_counter()
            outputs, version = self._act(observations[t])
            policy_s += time.perf_counter() - asked
            record.policy(t, outputs, version)
            self._step(observations[t + 1], outputs["actions"], record, t)
        self._observations = observations[length].copy()
        total_s = time.perf_counter() - began
        return record.trajectory(
            self._worker, observations, total_s - policy_s, policy_s
        )

    def _step(self, following: Array, actions: Array, record: _Record, t: int) -> None:
        """Step every environment once; writes the next observations, ``(N, ...)``."""
        for i, (env, action) in enumerate(
            zip(self._envs, self._clip(actions), strict=True)
        ):
            observation, reward, terminated, truncated, _ = env.step(action)
            record.rewards[t, i] = reward
            self._returns[i] += reward
            if terminated or truncated:
                record.terminated[t, i] = terminated
                record.truncated[t, i] = truncated
                record.final_observations.append(observation)
                record.episode_returns.append(self._returns[i])
                self._returns[i] = 0.0
                observation, _ = env.reset()
            following[i] = observation


@dataclass
class _Record:
    """The arrays of a rollout while it is made."""

    length: int
    num_envs: int
    extras: dict[str, Array] = field(default_factory=dict)
    final_observations: list[Any] = field(default_factory=list)
    episode_returns: list[np.float32] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = (self.length, self.num_envs)
        self.rewards = np.empty(shape, np.float32)
        self.terminated = np.zeros(shape, np.bool_)
        self.truncated = np.zeros(shape, np.bool_)
        self.policy_versions = np.empty(self.length, np.int64)

    def policy(self, t: int, outputs: dict[str, Array], version: int) -> None:
        self.policy_versions[t] = version
        for name, array in outputs.items():
            if t == 0:
                self.extras[name] = skate.empty(
                    (self.length, *array.shape), array.dtype
                )
            self.extras[name][t] = array

    def trajectory(
        self, worker: int, observations: Array, simulate_s: float, policy_s: float
    ) -> Trajectory:
        one = observations.shape[2:]
        finals = np.array(self.final_observations, observations.dtype)
        return Trajectory(
            worker=worker,
            observations=observations,
            actions=self.extras.pop("actions"),
            rewards=self.rewards,
            terminated=self.terminated,
            truncated=self.truncated,
            final_observations=finals.reshape(-1, *one),
            policy_versions=self.policy_versions,
            extras=self.extras,
            episode_returns=np.array(self.episode_returns, np.float32),
            simulate_s=simulate_s,
            policy_s=policy_s,
        )


class Rollouts:
    """Trajectories from all workers, as they finish; endless. Made by `rollouts`."""

    def __init__(self, workers: list[Any], rollout_length: int, max_ahead: int) -> None:
        self._workers = workers  # Any: handles of an actor class made at run time
        self._length = rollout_length
        self._in_flight: dict[Any, Any] = {}  # ref -> the worker that makes it
        for _ in range(max_ahead):
            for worker in workers:
                self._begin(worker)

    def __iter__(self) -> Iterator[Trajectory]:
        return self

    def __next__(self) -> Trajectory:
        """The next finished one; its worker begins another at once.

        Raises:
            ActorDiedError: a worker's process ended.
            Exception: what an environment or the policy raised, as a TaskError too.
        """
        (ref,), _ = skate.wait(list(self._in_flight), num_returns=1)
        self._begin(self._in_flight.pop(ref))
        trajectory: Trajectory = skate.get(ref)
        return trajectory

    def close(self) -> None:
        """End the workers."""
        self._in_flight.clear()
        for worker in self._workers:
            skate.kill(worker)

    def __enter__(self) -> Rollouts:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _begin(self, worker: Any) -> None:
        self._in_flight[worker.rollout.remote(self._length)] = worker


def rollouts(
    env: str | Callable[[], Env],
    policy: Policy,
    *,
    num_workers: int,
    num_envs_per_worker: int,
    rollout_length: int,
    max_ahead: int = 1,
    seed: int | Sequence[int] = 0,
    first_worker: int = 0,
) -> Rollouts:
    """Let ``policy`` act in ``num_workers * num_envs_per_worker`` environments.

    Args:
        env: a gymnasium id, or a function that makes one environment.
        policy: a function that the workers call, or a served policy that they all
            ask, ``num_envs_per_worker`` observations a request. The versions in its
            answers are recorded step by step; a function's is 0.
        rollout_length: steps of each environment in one trajectory, T.
        max_ahead: trajectories of a worker under way or not yet taken. With 1, a
            worker begins the next when you take its last: it simulates while you
            use that one, and then waits for you.
        seed: with the place of an environment, decides its episodes.
        first_worker: the number of the first worker, when several sets share a seed.

    Raises:
        ValueError: a number is out of range.
        ImportError: ``env`` is an id and gymnasium is not installed.
    """
    for name, number in [
        ("num_workers", num_workers),
        ("num_envs_per_worker", num_envs_per_worker),
        ("rollout_length", rollout_length),
        ("max_ahead", max_ahead),
    ]:
        if number < 1:
            raise ValueError(f"{name}={number!r}; expected at least 1.")
    actor_class = skate.remote(RolloutWorker)
    workers = [
        actor_class.remote(env, policy, num_envs_per_worker, seed, first_worker + i)
        for i in range(num_workers)
    ]
    return Rollouts(workers, rollout_length, max_ahead)


def make_env(env: str | Callable[[], Env]) -> Env:
    """One environment, from a gymnasium id or a function.

    Raises:
        ImportError: an id, and gymnasium is not installed.
    """
    if not isinstance(env, str):
        return env()
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(
            f"the environment {env!r} comes from gymnasium, which is not installed: "
            "pip install 'skate[rl]'"
        ) from error
    made: Env = gymnasium.make(env)
    return made


def _acting(policy: Policy) -> Callable[[Array], tuple[dict[str, Array], int]]:
    """``policy`` as a function to its outputs, by name, and their version."""
    evaluate = getattr(policy, "evaluate", None)

    def act(observations: Array) -> tuple[dict[str, Array], int]:
        if evaluate is not None:
            outputs, version = evaluate(observations, return_version=True)
        else:
            outputs, version = policy(observations), 0  # type: ignore[operator]
        if not isinstance(outputs, dict):
            outputs = {"actions": np.asarray(outputs)}
        return outputs, version

    return act


def _clipping(env: Env) -> Callable[[Array], Array]:
    """Keeps actions within the bounds of ``env``, if its action space has any."""
    space = getattr(env, "action_space", None)
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if low is None or high is None:
        return lambda actions: actions
    return lambda actions: np.clip(actions, low, high)
