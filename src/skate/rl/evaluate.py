"""How good a policy is: the returns of whole episodes, with fixed seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skate.sim import make_env

from .policy import Array


@dataclass(frozen=True)
class Evaluation:
    """Returns of whole episodes."""

    returns: npt.NDArray[np.float64]  # (episodes,)

    @property
    def mean(self) -> float:
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        return float(self.returns.std())


def evaluate(
    policy: Callable[[Array], Array], env: str, *, episodes: int = 20, seed: int = 0
) -> Evaluation:
    """Play whole episodes; episode ``i`` is reset with ``seed + i``.

    Raises:
        ValueError: ``episodes`` is below 1.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes!r}; expected at least 1.")
    game = make_env(env)
    returns = np.zeros(episodes)
    for episode in range(episodes):
        observation, _ = game.reset(seed=seed + episode)
        ended = False
        while not ended:
            action = policy(observation)
            observation, reward, terminated, truncated, _ = game.step(action)
            returns[episode] += float(reward)
            ended = terminated or truncated
    return Evaluation(returns)
