"""A share of a vector environment: what one process steps, and how shares combine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from .vector_board import Board, Outcome, Plan


class EnvError(RuntimeError):
    """An environment raised: the message says which one, and at which of its steps."""


@dataclass(frozen=True)
class Share:
    """Which environments a process makes, and how."""

    env: Any  # a gymnasium id, or a function
    first: int  # the number of its first environment in the whole
    size: int
    autoreset_mode: AutoresetMode
    vectorized: bool  # ``env`` makes a vector environment of a given size

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.size)

    def make(self) -> gymnasium.vector.VectorEnv:
        """The environments, stepped one after another, or as their author does."""
        if self.vectorized:
            if isinstance(self.env, str):
                return gymnasium.make_vec(
                    self.env, self.size, vectorization_mode="vector_entry_point"
                )
            made: gymnasium.vector.VectorEnv = self.env(self.size)
            return made
        numbers = range(self.first, self.first + self.size)
        makers = [self._maker(number) for number in numbers]
        # Rows are copied on their way to the caller in any case.
        return SyncVectorEnv(makers, copy=False, autoreset_mode=self.autoreset_mode)

    def _maker(self, number: int) -> Callable[[], gymnasium.Env]:
        def make() -> gymnasium.Env:
            env = gymnasium.make(self.env) if isinstance(self.env, str) else self.env()
            return _Numbered(env, number)

        return make


class _Numbered(gymnasium.Wrapper):
    """Says which environment raised, or returned what its space cannot hold."""

    def __init__(self, env: gymnasium.Env, number: int) -> None:
        super().__init__(env)
        self._number, self._steps = number, 0
        self._shape = getattr(env.observation_space, "shape", None)
        self._is_array = isinstance(env.observation_space, gymnasium.spaces.Box)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._steps = 0
        try:
            observation, info = self.env.reset(**kwargs)
        except Exception as error:
            raise EnvError(f"{self._name} raised in reset: {error!r}") from error
        self._check(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._steps += 1
        try:
            result = self.env.step(action)
        except Exception as error:
            raise EnvError(
                f"{self._name} raised at step {self._steps}: {error!r}"
            ) from error
        if getattr(result[0], "shape", None) != self._shape:
            self._check(result[0])
        return result

    def is_wrapped_with(self, wrapper: type) -> bool:
        """Whether one of the wrappers around the environment is a ``wrapper``."""
        env: Any = self.env
        while isinstance(env, gymnasium.Wrapper):
            if isinstance(env, wrapper):
                return True
            env = env.env
        return False

    @property
    def _name(self) -> str:
        return f"environment {self._number}"

    def _check(self, observation: Any) -> None:
        if self._is_array and np.shape(observation) != self._shape:
            raise EnvError(
                f"{self._name}, step {self._steps}: an observation has shape "
                f"{np.shape(observation)}; its observation_space says {self._shape}."
            )


class EnvWorker:
    """An actor with one share."""

    def __init__(self, share: Share) -> None:
        self._rows = share.rows
        self._envs = share.make()
        self._board: Board | None = None
        self._place = 0  # among the workers of the board

    def join_board(self, plan: Plan, place: int) -> None:
        if self._board is not None:
            self._board.close()
        self._board, self._place = Board(plan, 1 + place, self._rows), place

    def serve(self, seen: int) -> Any:
        """Steps in rounds after ``seen``; see :meth:`Board.serve`."""
        assert self._board is not None
        return self._board.serve(self._envs, self._place, seen)

    def face(self) -> dict[str, Any]:
        return face(self._envs)

    def reset(self, seed: Any, options: Any) -> Outcome:
        return reset(self._envs, seed, options)

    def step(self, actions: Any) -> Outcome:
        return self._envs.step(actions)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._envs.call(name, *args, **kwargs)  # type: ignore[attr-defined]

    def set_attr(self, name: str, values: list[Any]) -> None:
        self._envs.set_attr(name, values)  # type: ignore[attr-defined]

    def close(self) -> None:
        self._envs.close()


def face(envs: gymnasium.vector.VectorEnv) -> dict[str, Any]:
    """What all shares have in common."""
    return {
        "single_observation_space": envs.single_observation_space,
        "single_action_space": envs.single_action_space,
        "metadata": dict(envs.metadata),
        "render_mode": envs.render_mode,
    }


def reset(envs: gymnasium.vector.VectorEnv, seed: Any, options: Any) -> Outcome:
    """Reset, as the outcome of a step in which nothing was earned.

    A native vector environment takes one seed: that of its first environment.
    """
    if not isinstance(envs, SyncVectorEnv):
        seed = seed[0]
    observations, infos = envs.reset(seed=seed, options=options)
    n = envs.num_envs
    return observations, np.zeros(n), np.zeros(n, bool), np.zeros(n, bool), infos


# Shares and the whole -----------------------------------------------------------------


def join(space: gymnasium.Space[Any], parts: Sequence[Any]) -> Any:
    """The batch whose rows are those of ``parts``; a copy. ``space`` is of one row."""
    first = parts[0]
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    if isinstance(space, gymnasium.spaces.Dict):
        return {
            name: join(inner, [part[name] for part in parts])
            for name, inner in space.spaces.items()
        }
    if isinstance(space, gymnasium.spaces.Tuple):
        return tuple(
            join(inner, [part[i] for part in parts])
            for i, inner in enumerate(space.spaces)
        )
    return tuple(row for part in parts for row in part)  # objects, one a row


def rows(space: gymnasium.Space[Any], batch: Any, chosen: slice) -> Any:
    """The chosen rows of a batch; ``space`` is of one row."""
    if isinstance(batch, np.ndarray):
        return batch[chosen]
    if isinstance(space, gymnasium.spaces.Dict):
        return {
            name: rows(inner, batch[name], chosen)
            for name, inner in space.spaces.items()
        }
    if isinstance(space, gymnasium.spaces.Tuple):
        return tuple(
            rows(inner, batch[i], chosen) for i, inner in enumerate(space.spaces)
        )
    return batch[chosen]


def join_infos(parts: Sequence[dict[str, Any]], sizes: Sequence[int]) -> dict[str, Any]:
    """Infos of the whole from those of its parts: arrays, masks, dictionaries."""
    if not any(parts):
        return {}
    whole: dict[str, Any] = {}
    ends = np.cumsum(sizes)
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part.get(name) for part in parts]
        if any(isinstance(value, dict) for value in values):
            whole[name] = join_infos([value or {} for value in values], sizes)
            continue
        known = next(np.asarray(value) for value in values if value is not None)
        array = np.zeros((ends[-1], *known.shape[1:]), known.dtype)
        if known.dtype == object:
            array.fill(None)
        for value, size, end in zip(values, sizes, ends, strict=True):
            if value is not None:
                array[end - size : end] = value
        whole[name] = array
    return whole
