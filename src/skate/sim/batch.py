"""N environments of a worker behind one interface: reset, and step all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import numpy as np

from .deadline import StepDeadline, StepTimeout
from .env import EnvMaker, make_env
from .trajectory import Array, Record


class RolloutError(RuntimeError):
    """An environment or the policy did what it must not; says where.

    Attributes:
        worker: the number of the worker.
        env_index: which of its environments; None: the policy.
        step: of the worker, counted from its start.
    """

    def __init__(
        self,
        message: str,
        worker: int | None = None,
        env_index: int | None = None,
        step: int | None = None,
    ) -> None:
        super().__init__(message)
        self.worker = worker
        self.env_index = env_index
        self.step = step


@dataclass
class Place:
    """Where a worker is, for its seeds and its errors; and what it may do."""

    worker: int
    seed: int | Sequence[int]
    life: int  # how often the worker has been replaced
    deadline: StepDeadline
    replaces: bool  # an environment that raises; else that ends the rollouts
    step: int = 0
    replaced: int = 0
    _lives: dict[int, int] = field(default_factory=dict)

    def seeds(self, num_envs: int) -> list[int]:
        """Of all environments: from their place, not from the process."""
        key = (self.worker, self.life) if self.life else (self.worker,)
        sequence = np.random.SeedSequence(self.seed, spawn_key=key)
        return [int(seed) for seed in sequence.generate_state(num_envs)]

    def seeds_anew(self, index: int, count: int = 1) -> list[int]:
        """Of what takes the place of environment ``index``."""
        self.replaced += 1
        number = self._lives[index] = self._lives.get(index, 0) + 1
        key = (self.worker, self.life, index, number)
        sequence = np.random.SeedSequence(self.seed, spawn_key=key)
        return [int(seed) for seed in sequence.generate_state(count)]

    def error(self, what: str, index: int | None = None) -> RolloutError:
        where = "" if index is None else f", environment {index}"
        return RolloutError(
            f"worker {self.worker}{where}, step {self.step}: {what}",
            self.worker,
            index,
            self.step,
        )

    def step_env(self, index: int, step: Callable[[Any], Any], action: Any) -> Any:
        """What ``step(action)`` returns; None: the environment must be replaced."""
        try:
            return self.step_in_time(step, action)
        except Exception as error:
            self.failed(index, error)
            return None

    def step_in_time(self, step: Callable[[Any], Any], action: Any) -> Any:
        """What ``step(action)`` returns; None: it took too long."""
        deadline = self.deadline
        late = False
        try:
            deadline.begin()
            try:
                result = step(action)
            finally:
                late = deadline.end()
        except StepTimeout:
            deadline.end()  # it may have come while that ran
            return None
        return None if late else result

    def failed(self, index: int, error: Exception) -> None:
        """Raise what a step raised, with its place, unless it is to be replaced."""
        if not self.replaces:
            raise self.error(
                f"the environment raised {type(error).__name__}: {error}", index
            ) from error


class Batch(Protocol):
    """N columns that step together."""

    num_columns: int  # N
    agents: tuple[str, ...]
    action_space: Any  # of one column, or None
    observation_bounds: tuple[Any, Any]  # of one column; None: there are none

    def reset(self) -> Array:
        """First observations, ``(N, ...)``."""

    def step(self, actions: Array, record: Record, t: int) -> None:
        """One step of every column, into row ``t``; resets those that end."""

    def column_index(self, column: int) -> int:
        """The environment of a column."""


class SingleEnvs:
    """Environments of one agent, stepped one after another.

    A process for each would cost a wake-up for each step: more than the step itself in
    most environments.
    """

    agents: tuple[str, ...] = ()

    def __init__(self, make: EnvMaker, first: Any, num_envs: int, place: Place) -> None:
        self._make = make
        self._place = place
        self._envs = [first, *(make_env(make) for _ in range(num_envs - 1))]
        self.num_columns = num_envs
        self.action_space = getattr(first, "action_space", None)
        self.observation_bounds = bounds(getattr(first, "observation_space", None))
        self._returns = np.zeros(num_envs, np.float32)

    def column_index(self, column: int) -> int:
        return column

    def reset(self) -> Array:
        seeds = self._place.seeds(self.num_columns)
        rows = [
            np.asarray(env.reset(seed=seed)[0])
            for env, seed in zip(self._envs, seeds, strict=True)
        ]
        for index, row in enumerate(rows):
            check_observation(self._place, index, row, rows[0])
        return np.stack(rows)

    def step(self, actions: Array, record: Record, t: int) -> None:
        place, envs = self._place, self._envs
        timed = not place.deadline.is_off
        before, following = record.observations[t], record.observations[t + 1]
        shape, dtype = following.shape[1:], following.dtype
        for i, action in enumerate(actions):
            env = envs[i]
            try:
                if timed:
                    result = place.step_in_time(env.step, action)
                else:
                    result = env.step(action)
            except Exception as error:
                place.failed(i, error)
                result = None
            if result is None:
                self._replace(i, before[i], following, record, t)
                continue
            observation, reward, terminated, truncated, _ = result
            if (
                type(observation) is not np.ndarray
                or observation.shape != shape
                or observation.dtype != dtype
            ):
                check_observation(place, i, np.asarray(observation), following[0])
            record.rewards[t, i] = reward
            self._returns[i] += reward
            if terminated or truncated:
                record.terminated[t, i] = terminated
                record.truncated[t, i] = truncated
                record.final_observations.append(observation)
                record.episode_returns.append(self._returns[i])
                self._returns[i] = 0.0
                observation, _ = env.reset()
                check_observation(place, i, np.asarray(observation), following[0])
            following[i] = observation

    def _replace(
        self, i: int, before: Array, following: Array, record: Record, t: int
    ) -> None:
        (seed,) = self._place.seeds_anew(i)
        self._envs[i] = env = make_env(self._make)
        record.truncated[t, i] = True
        record.valid[t, i] = False
        record.final_observations.append(before)
        record.episode_returns.append(self._returns[i])
        self._returns[i] = 0.0
        following[i], _ = env.reset(seed=seed)


class VectorEnvs:
    """A gymnasium vector environment, which steps all of its own."""

    agents: tuple[str, ...] = ()

    def __init__(self, make: Callable[[], Any], first: Any, place: Place) -> None:
        from gymnasium.vector import AutoresetMode

        self._make = make
        self._env = first
        self._place = place
        self.num_columns: int = first.num_envs
        self.action_space = first.single_action_space
        self.observation_bounds = bounds(first.single_observation_space)
        mode = first.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self._mode = AutoresetMode(mode)
        self._modes = AutoresetMode
        self._ended = np.zeros(self.num_columns, np.bool_)
        self._returns = np.zeros(self.num_columns, np.float32)

    def column_index(self, column: int) -> int:
        return column

    def reset(self) -> Array:
        seeds = self._place.seeds(self.num_columns)
        return np.array(self._env.reset(seed=seeds)[0])

    def step(self, actions: Array, record: Record, t: int) -> None:
        following = record.observations[t + 1]
        result = self._place.step_env(0, self._env.step, actions)
        if result is None:
            self._replace(record, t)
            return
        observations, rewards, terminated, truncated, infos = result
        if np.shape(observations) != following.shape:
            self._wrong_shape(observations, following)
        following[...] = observations
        record.rewards[t] = rewards
        self._returns += record.rewards[t]
        record.terminated[t] = terminated
        record.truncated[t] = truncated
        if self._mode is self._modes.NEXT_STEP and self._ended.any():
            record.valid[t, self._ended] = False  # these steps did nothing but reset
        self._ended = record.terminated[t] | record.truncated[t]
        if not self._ended.any():
            return
        for i in np.flatnonzero(self._ended):
            final = following[i].copy()
            if self._mode is self._modes.SAME_STEP:
                final = infos["final_obs"][i]
            record.final_observations.append(final)
            record.episode_returns.append(self._returns[i])
        self._returns[self._ended] = 0.0
        if self._mode is self._modes.DISABLED:
            options = {"reset_mask": self._ended.copy()}
            following[...] = self._env.reset(options=options)[0]

    def _replace(self, record: Record, t: int) -> None:
        seeds = self._place.seeds_anew(0, self.num_columns)
        self._env = self._make()
        record.truncated[t] = True
        record.valid[t] = False
        record.final_observations += list(record.observations[t])
        record.episode_returns += list(self._returns)
        self._returns[:] = 0.0
        self._ended[:] = False
        record.observations[t + 1] = self._env.reset(seed=seeds)[0]

    def _wrong_shape(self, observations: Any, following: Array) -> NoReturn:
        raise self._place.error(
            f"the vector environment gave observations of shape "
            f"{np.shape(observations)}; they had {following.shape} before"
        )


def check_observation(place: Place, index: int, got: Array, like: Array) -> None:
    """Raise unless ``got`` has the shape of ``like`` and fits its dtype."""
    if got.shape != like.shape:
        raise place.error(
            f"the environment gave an observation of shape {got.shape}; "
            f"they had {like.shape} before",
            index,
        )
    if not np.can_cast(got.dtype, like.dtype, "same_kind"):
        raise place.error(
            f"the environment gave an observation of dtype {got.dtype}; "
            f"they had {like.dtype} before",
            index,
        )


def bounds(space: Any) -> tuple[Any, Any]:
    """Lowest and highest of a box or a discrete space; None where there are none."""
    if hasattr(space, "n") and hasattr(space, "start"):
        return space.start, space.start + space.n - 1
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if low is None or high is None:
        return None, None
    if np.isneginf(low).all() and np.isposinf(high).all():
        return None, None
    return low, high


def make_batch(make: EnvMaker, num_envs: int | None, place: Place) -> Batch:
    """The environments of one worker, by what ``make`` makes.

    Raises:
        ValueError: a vector environment has another number of environments.
        TypeError: it is no environment.
    """
    first: Any = make_env(make)
    if hasattr(first, "possible_agents"):
        from .multi_agent import ParallelEnvs

        assert not isinstance(make, str)
        return ParallelEnvs(make, first, num_envs or 1, place)
    if hasattr(first, "single_action_space"):
        if num_envs not in (None, first.num_envs):
            raise ValueError(
                f"num_envs_per_worker={num_envs!r}, and the vector environment has "
                f"{first.num_envs}. Leave it out, or make them agree."
            )
        assert not isinstance(make, str)
        return VectorEnvs(make, first, place)
    if not (hasattr(first, "reset") and hasattr(first, "step")):
        raise TypeError(f"{first!r} is no environment: it lacks reset or step.")
    return SingleEnvs(make, first, num_envs or 1, place)
