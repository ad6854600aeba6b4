"""The policy that acts: a Gaussian over actions, computed with NumPy alone.

Its weights are a dictionary of arrays. The learner makes them (``ppo``), the served
policy acts on them, and a finished run is loaded from them without torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Weights = Mapping[str, Array]

# Observations are scaled to unit variance; what is further out is an outlier.
MAX_SCALED_OBSERVATION = 10.0


def initial_weights(
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    num_observations: int,
    hidden: tuple[int, ...],
    seed: int,
) -> dict[str, Array]:
    """Weights of a new policy whose actions lie between ``low`` and ``high``.

    Args:
        low, high: finite bounds of the action, ``(A,)``.
        num_observations: length of one observation, D.
        hidden: sizes of the hidden layers.
    """
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    rng = np.random.default_rng(seed)
    # A small last layer: at first, every observation gets the middle action.
    weights = mlp_weights(rng, (num_observations, *hidden, len(low)), last_gain=0.01)
    return weights | {
        "log_std": np.zeros(len(low), np.float32),  # in units of action_scale
        "observation_mean": np.zeros(num_observations, np.float32),
        "observation_std": np.ones(num_observations, np.float32),
        "action_center": (high + low) / 2,
        "action_scale": (high - low) / 2,
    }


def mlp_weights(
    rng: np.random.Generator, sizes: tuple[int, ...], last_gain: float
) -> dict[str, Array]:
    """Orthogonal ``w0``, ``w1``, ... of shape (out, in), and zero ``b0``, ..."""
    weights = {}
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        gain = last_gain if i == len(sizes) - 2 else np.sqrt(2)
        tall = rng.standard_normal((max(n_in, n_out), min(n_in, n_out)))
        q, r = np.linalg.qr(tall)
        q = q * np.sign(np.diag(r))  # makes the draw uniform over rotations
        weights[f"w{i}"] = (gain * (q if n_out >= n_in else q.T)).astype(np.float32)
        weights[f"b{i}"] = np.zeros(n_out, np.float32)
    return weights


def hidden_sizes(weights: Weights) -> tuple[int, ...]:
    """The sizes of a policy's hidden layers."""
    depth = sum(name[0] == "w" for name in weights)
    return tuple(len(weights[f"b{i}"]) for i in range(depth - 1))


class GaussianPolicy:
    """What is served: ``evaluate`` draws actions, ``set_weights`` replaces the policy.

    Args:
        weights: from :func:`initial_weights` or a learner.
        seed: of the draws. A policy that only calls :meth:`mean` needs none.
    """

    def __init__(self, weights: Weights, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self.set_weights(weights)

    def set_weights(self, weights: Weights) -> None:
        """Replace the policy; if a name is missing, the old one stays (KeyError)."""
        depth = len(hidden_sizes(weights)) + 1
        layers = [(weights[f"w{i}"].T, weights[f"b{i}"]) for i in range(depth)]
        std = np.exp(weights["log_std"]) * weights["action_scale"]
        self._layers, self._std, self._weights = layers, std, weights

    def get_weights(self) -> dict[str, Array]:
        return dict(self._weights)

    def mean(self, observations: Array) -> Array:
        """The deterministic action for each observation: ``(..., D)`` to ``(..., A)``.

        Not clipped to the bounds: the Gaussian around it may reach beyond them.
        """
        w = self._weights
        x = scale(observations, w["observation_mean"], w["observation_std"])
        *hidden, (last, bias) = self._layers
        for weight, b in hidden:
            x = np.tanh(x @ weight + b)  # (..., H)
        means: Array = w["action_center"] + w["action_scale"] * (x @ last + bias)
        return means

    def evaluate(self, observations: Array) -> dict[str, Array]:
        """Draw an action for each of B observations, ``(B, D)``.

        Returns ``actions`` (B, A), in the environment's units and not clipped, and
        ``log_probs`` (B,), the logarithm of the density that they were drawn with.
        """
        mean = self.mean(observations)
        noise = self._rng.standard_normal(mean.shape, dtype=np.float32)  # (B, A)
        log_probs = -0.5 * noise**2 - np.log(self._std) - 0.5 * np.log(2 * np.pi)
        return {
            "actions": mean + self._std * noise,
            "log_probs": log_probs.sum(axis=1, dtype=np.float32),
        }


class DeterministicPolicy:
    """One observation, ``(D,)``, to the mean action, ``(A,)``, within the bounds."""

    def __init__(self, weights: Weights) -> None:
        self._policy = GaussianPolicy(weights)
        center, scale = weights["action_center"], weights["action_scale"]
        self._low, self._high = center - scale, center + scale

    def __call__(self, observation: npt.ArrayLike) -> Array:
        action = self._policy.mean(np.asarray(observation, np.float32))
        bounded: Array = np.clip(action, self._low, self._high)
        return bounded


def scale(observations: Array, mean: Array, std: Array) -> Array:
    """Observations in units of ``std`` around ``mean``, outliers cut off."""
    scaled: Array = (observations - mean) / std
    return scaled.clip(-MAX_SCALED_OBSERVATION, MAX_SCALED_OBSERVATION)
