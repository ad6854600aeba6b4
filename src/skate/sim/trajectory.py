"""What rollouts are: arrays, time first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import skate

Array = npt.NDArray[Any]  # any dtype: the environment decides


@dataclass(frozen=True)
class Trajectory:
    """What N environments of one worker did in T steps; time first.

    An environment that ends is reset at once, so ``observations[t + 1]`` may be the
    first of a new episode; :attr:`next_observations` has the last of the old one.

    A whole episode is one environment's: N is 1, and the last row of ``observations``
    is its last. With several agents, N counts agents: see ``agents``.
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
    # (T, N): False where a row is no transition: its environment was replaced or only
    # reset (gymnasium's next-step autoreset), or its agent is out until the others end.
    valid: npt.NDArray[np.bool_] = field(
        default_factory=lambda: np.ones((0, 0), np.bool_)
    )
    agents: tuple[str, ...] = ()  # (N,) names, if environments have several agents
    env_index: int | None = None  # of a whole episode: which of the worker's
    lag: int = 0  # versions by which the oldest step is behind the newest known

    @property
    def next_observations(self) -> Array:
        """What followed each action, before any reset: ``(T, N, ...)``."""
        following: Array = self.observations[1:].copy()
        following[self.terminated | self.truncated] = self.final_observations
        return following


@dataclass
class Record:
    """The arrays of a rollout of T steps while it is made."""

    length: int
    num_envs: int
    observations: Array  # (T + 1, N, ...)
    extras: dict[str, Array] = field(default_factory=dict)
    final_observations: list[Any] = field(default_factory=list)
    episode_returns: list[np.float32] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = (self.length, self.num_envs)
        self.rewards = np.zeros(shape, np.float32)
        self.terminated = np.zeros(shape, np.bool_)
        self.truncated = np.zeros(shape, np.bool_)
        self.valid = np.ones(shape, np.bool_)
        self.policy_versions = np.zeros(self.length, np.int64)

    def policy(self, t: int, outputs: dict[str, Array], version: int) -> None:
        self.policy_versions[t] = version
        for name, array in outputs.items():
            if t == 0:
                self.extras[name] = skate.empty(
                    (self.length, *array.shape), array.dtype
                )
            self.extras[name][t] = array

    def trajectory(
        self, worker: int, agents: tuple[str, ...], simulate_s: float, policy_s: float
    ) -> Trajectory:
        one = self.observations.shape[2:]
        finals = np.array(self.final_observations, self.observations.dtype)
        return Trajectory(
            worker=worker,
            observations=self.observations,
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
            valid=self.valid,
            agents=agents,
        )
