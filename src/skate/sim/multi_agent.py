"""PettingZoo parallel environments: each agent is a column of the rollout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .batch import Place, bounds, check_observation
from .trajectory import Array, Record


class ParallelEnvs:
    """E environments of A agents each: N = E * A, the agents of one side by side.

    All agents have the same spaces, so that one policy serves them. An agent that is
    out before the others stays a column, whose rows are not valid until all are reset.
    """

    def __init__(
        self, make: Callable[[], Any], first: Any, num_envs: int, place: Place
    ) -> None:
        self._make = make
        self._place = place
        self._envs = [first, *(make() for _ in range(num_envs - 1))]
        self._names: list[str] = list(first.possible_agents)
        self.agents = tuple(map(str, self._names * num_envs))
        self.num_columns = len(self.agents)
        self.action_space = self._common("action_space", first)
        self.observation_bounds = bounds(self._common("observation_space", first))
        self._live = np.ones(self.num_columns, np.bool_)
        self._returns = np.zeros(self.num_columns, np.float32)

    def _common(self, name: str, env: Any) -> Any:
        spaces = [getattr(env, name)(agent) for agent in self._names]
        for agent, space in zip(self._names, spaces, strict=True):
            if space != spaces[0]:
                raise ValueError(
                    f"agents {self._names[0]!r} and {agent!r} differ in {name}: "
                    f"{spaces[0]} and {space}. Rollouts need the same for all agents: "
                    "pad them with a wrapper of the environment."
                )
        return spaces[0]

    def column_index(self, column: int) -> int:
        return column // len(self._names)

    def reset(self) -> Array:
        seeds = self._place.seeds(len(self._envs))
        rows = [
            self._rows(env.reset(seed=seed)[0])
            for env, seed in zip(self._envs, seeds, strict=True)
        ]
        return np.concatenate(rows)

    def _rows(self, observations: dict[str, Any]) -> Array:
        """Of a reset, where every agent takes part: ``(A, ...)``."""
        return np.stack([np.asarray(observations[name]) for name in self._names])

    def step(self, actions: Array, record: Record, t: int) -> None:
        size = len(self._names)
        for e, env in enumerate(self._envs):
            columns = range(e * size, (e + 1) * size)
            chosen = {
                name: actions[column]
                for name, column in zip(self._names, columns, strict=True)
                if self._live[column]
            }
            result = self._place.step_env(e, env.step, chosen)
            part = slice(columns.start, columns.stop)
            if result is None:
                self._replace(e, part, record, t)
                continue
            self._take(e, columns, result, record, t)
            if not env.agents:
                record.observations[t + 1, part] = self._rows(env.reset()[0])
                self._live[part] = True

    def _take(
        self, e: int, columns: range, result: Any, record: Record, t: int
    ) -> None:
        observations, rewards, terminations, truncations, _ = result
        following = record.observations[t + 1]
        present = set(self._envs[e].agents)
        for name, column in zip(self._names, columns, strict=True):
            if not self._live[column]:
                record.valid[t, column] = False
                following[column] = record.observations[t, column]
                continue
            observation = np.asarray(observations[name])
            check_observation(self._place, e, observation, following[column])
            following[column] = observation
            record.rewards[t, column] = rewards[name]
            self._returns[column] += rewards[name]
            terminated, truncated = terminations[name], truncations[name]
            if terminated or truncated or name not in present:
                record.terminated[t, column] = terminated
                record.truncated[t, column] = truncated or not terminated
                record.final_observations.append(observation)
                record.episode_returns.append(self._returns[column])
                self._returns[column] = 0.0
                self._live[column] = False

    def _replace(self, e: int, part: slice, record: Record, t: int) -> None:
        (seed,) = self._place.seeds_anew(e)
        self._envs[e] = env = self._make()
        record.valid[t, part] = False
        for column in range(part.start, part.stop):
            if self._live[column]:
                record.truncated[t, column] = True
                record.final_observations.append(record.observations[t, column])
                record.episode_returns.append(self._returns[column])
        self._returns[part] = 0.0
        self._live[part] = True
        record.observations[t + 1, part] = self._rows(env.reset(seed=seed)[0])
