"""The policies that act, computed with NumPy alone.

A policy is its weights, a dictionary of arrays. A learner makes them, the served policy
acts on them, and a finished run is loaded from them without torch. Continuous actions
are drawn from a Gaussian; one of several discrete ones by its probability.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Weights = Mapping[str, Array]

# Observations are scaled to unit variance; what is further out is an outlier.
MAX_SCALED_OBSERVATION = 10.0


class Policy(Protocol):
    """What is served: ``evaluate`` draws actions, ``set_weights`` replaces the policy.

    If ``set_weights`` misses a name, the old policy stays (KeyError).
    """

    def __init__(self, weights: Weights, seed: Any = 0) -> None: ...

    def set_weights(self, weights: Weights) -> None: ...

    def get_weights(self) -> dict[str, Array]: ...

    def evaluate(self, observations: Array) -> dict[str, npt.NDArray[Any]]:
        """Draw an action for each of B observations, ``(B, D)``.

        Returns ``actions``, ``(B, ...)``, and ``log_probs`` (B,), the logarithm of
        the probability, or density, that they were drawn with.
        """

    def best(self, observations: Array) -> npt.NDArray[Any]:
        """The most probable action for each observation, within its bounds."""


def gaussian_weights(
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
    return _new_weights(num_observations, hidden, len(low), seed) | {
        "log_std": np.zeros(len(low), np.float32),  # in units of action_scale
        "action_center": (high + low) / 2,
        "action_scale": (high - low) / 2,
    }


def categorical_weights(
    num_actions: int, num_observations: int, hidden: tuple[int, ...], seed: int
) -> dict[str, Array]:
    """Weights of a new policy that chooses among actions 0 to ``num_actions - 1``."""
    return _new_weights(num_observations, hidden, num_actions, seed)


def _new_weights(
    num_observations: int, hidden: tuple[int, ...], num_outputs: int, seed: int
) -> dict[str, Array]:
    sizes = (num_observations, *hidden, num_outputs)
    # A small last layer: at first, every observation gets the same outputs.
    return mlp_weights(np.random.default_rng(seed), sizes, last_gain=0.01) | {
        "observation_mean": np.zeros(num_observations, np.float32),
        "observation_std": np.ones(num_observations, np.float32),
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
        turned = q if n_out >= n_in else q.T
        weights[f"w{i}"] = np.ascontiguousarray(gain * turned, np.float32)
        weights[f"b{i}"] = np.zeros(n_out, np.float32)
    return weights


def hidden_sizes(weights: Weights) -> tuple[int, ...]:
    """The sizes of a policy's hidden layers."""
    depth = sum(name[0] == "w" for name in weights)
    return tuple(len(weights[f"b{i}"]) for i in range(depth - 1))


class _Network:
    """Scales observations, and computes the outputs of the network for them."""

    def __init__(self, weights: Weights) -> None:
        depth = len(hidden_sizes(weights)) + 1
        self._layers = [(weights[f"w{i}"].T, weights[f"b{i}"]) for i in range(depth)]
        self._mean = weights["observation_mean"]
        self._std = weights["observation_std"]

    def __call__(self, observations: Array) -> Array:
        """``(..., D)`` to ``(..., A)``."""
        x = scale(observations, self._mean, self._std)
        *hidden, (last, bias) = self._layers
        for weight, b in hidden:
            x = np.tanh(x @ weight + b)  # (..., H)
        outputs: Array = x @ last + bias
        return outputs


class GaussianPolicy:
    """Continuous actions: see :class:`Policy`. They are drawn around :meth:`mean`.

    Args:
        weights: from :func:`gaussian_weights` or a learner.
        seed: of the draws.
    """

    def __init__(self, weights: Weights, seed: Any = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self.set_weights(weights)

    def set_weights(self, weights: Weights) -> None:
        network = _Network(weights)
        std = np.exp(weights["log_std"]) * weights["action_scale"]
        self._network, self._std, self._weights = network, std, weights

    def get_weights(self) -> dict[str, Array]:
        return dict(self._weights)

    def mean(self, observations: Array) -> Array:
        """The middle of the Gaussian: ``(..., D)`` to ``(..., A)``.

        Not clipped to the bounds: the Gaussian around it may reach beyond them.
        """
        w = self._weights
        outputs = self._network(observations)
        means: Array = w["action_center"] + w["action_scale"] * outputs
        return means

    def best(self, observations: Array) -> Array:
        center, unit = self._weights["action_center"], self._weights["action_scale"]
        bounded: Array = np.clip(self.mean(observations), center - unit, center + unit)
        return bounded

    def evaluate(self, observations: Array) -> dict[str, npt.NDArray[Any]]:
        """Actions (B, A) are in the environment's units, and not clipped."""
        mean = self.mean(observations)
        noise = self._rng.standard_normal(mean.shape, dtype=np.float32)  # (B, A)
        log_probs = -0.5 * noise**2 - np.log(self._std) - 0.5 * np.log(2 * np.pi)
        return {
            "actions": mean + self._std * noise,
            "log_probs": log_probs.sum(axis=1, dtype=np.float32),
        }


class CategoricalPolicy:
    """One of A discrete actions: see :class:`Policy`.

    Args:
        weights: from :func:`categorical_weights` or a learner.
        seed: of the draws.
    """

    def __init__(self, weights: Weights, seed: Any = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self.set_weights(weights)

    def set_weights(self, weights: Weights) -> None:
        self._network, self._weights = _Network(weights), weights

    def get_weights(self) -> dict[str, Array]:
        return dict(self._weights)

    def log_probs(self, observations: Array) -> Array:
        """Of every action: ``(..., D)`` to ``(..., A)``."""
        logits = self._network(observations)
        logits -= logits.max(axis=-1, keepdims=True)
        log_probs: Array = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return log_probs

    def best(self, observations: Array) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = self._network(observations).argmax(axis=-1)
        return found

    def evaluate(self, observations: Array) -> dict[str, npt.NDArray[Any]]:
        log_probs = self.log_probs(observations)  # (B, A)
        # The largest of log_probs with Gumbel noise is a draw with these probabilities.
        noise = self._rng.gumbel(size=log_probs.shape)
        actions = (log_probs + noise).argmax(axis=1)  # (B,)
        chosen = np.take_along_axis(log_probs, actions[:, None], axis=1)[:, 0]
        return {"actions": actions, "log_probs": chosen}


def policy_class(weights: Weights) -> type[Policy]:
    """The kind of policy that these are the weights of."""
    return GaussianPolicy if "log_std" in weights else CategoricalPolicy


class DeterministicPolicy:
    """One observation, ``(D,)``, to the best action.

    That is an array ``(A,)`` within the bounds, or the number of a discrete action.
    """

    def __init__(self, weights: Weights) -> None:
        self._policy = policy_class(weights)(weights)

    def __call__(self, observation: npt.ArrayLike) -> Any:
        return self._policy.best(np.asarray(observation, np.float32))


def scale(observations: Array, mean: Array, std: Array) -> Array:
    """Observations in units of ``std`` around ``mean``, outliers cut off."""
    scaled: Array = (observations - mean) / std
    return scaled.clip(-MAX_SCALED_OBSERVATION, MAX_SCALED_OBSERVATION)
