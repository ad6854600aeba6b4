"""Which environments and algorithms there are, and what they need."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .policy import Array, categorical_weights, gaussian_weights

ALGORITHMS = ("ppo", "es")
EXTRAS = {  # package: module
    "gymnasium": "gymnasium",
    "matplotlib": "matplotlib",
    "pillow": "PIL",
    "torch": "torch",
}


@dataclass(frozen=True)
class Spaces:
    """What a policy must know of an environment."""

    num_observations: int
    low: Array | None = None  # (A,), of continuous actions
    high: Array | None = None  # (A,)
    num_actions: int = 0  # if they are discrete

    def initial_weights(self, hidden: tuple[int, ...], seed: int) -> dict[str, Array]:
        """Of a new policy for these spaces."""
        if self.low is None or self.high is None:
            return categorical_weights(
                self.num_actions, self.num_observations, hidden, seed
            )
        return gaussian_weights(
            self.low, self.high, self.num_observations, hidden, seed
        )


def check_extras() -> None:
    """Say what is missing before anything starts.

    Raises:
        ImportError: a package of the ``rl`` extra is not installed.
    """
    for package, module in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            raise ImportError(
                f"skate.rl needs {package}, which is not installed: "
                "pip install 'skate[rl]'"
            )


def check_algorithm(algo: str) -> None:
    """Raise ValueError, naming those that exist, unless ``algo`` does."""
    if algo not in ALGORITHMS:
        raise ValueError(
            f"unknown algorithm {algo!r}. Did you mean {_nearest(algo, ALGORITHMS)}?"
        )


def spaces(env: str) -> Spaces:
    """The spaces of ``env``.

    Raises:
        ValueError: there is no ``env`` (the message has the nearest names), its
            observations are no vectors, or its actions are neither vectors of bounded
            numbers nor discrete.
    """
    import gymnasium

    if env not in gymnasium.registry:
        raise ValueError(
            f"gymnasium has no environment {env!r}. Did you mean "
            f"{_nearest(env, gymnasium.registry)}?"
        )
    made = gymnasium.make(env)
    observations: Any = made.observation_space
    actions: Any = made.action_space
    made.close()
    box, discrete = gymnasium.spaces.Box, gymnasium.spaces.Discrete
    if not isinstance(observations, box) or len(observations.shape) != 1:
        raise ValueError(
            f"{env} has observations {observations}; skate.rl needs vectors."
        )
    size = observations.shape[0]
    if isinstance(actions, discrete) and actions.start == 0:
        return Spaces(size, num_actions=int(actions.n))
    if (
        not isinstance(actions, box)
        or len(actions.shape) != 1
        or not np.all(np.isfinite([actions.low, actions.high]))
    ):
        raise ValueError(
            f"{env} has actions {actions}; skate.rl needs vectors of bounded numbers, "
            "or discrete ones that are numbered from 0."
        )
    return Spaces(size, actions.low, actions.high)


def _nearest(wrong: str, names: Iterable[str]) -> str:
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(wrong.lower(), by_lower, n=3, cutoff=0)
    return " or ".join(by_lower[name] for name in close)
