"""Advantages and returns of rollouts: generalised advantage estimation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def gae(
    rewards: Array,
    values: Array,
    next_values: Array,
    terminated: npt.NDArray[np.bool_],
    truncated: npt.NDArray[np.bool_],
    *,
    gamma: float,
    gae_lambda: float,
) -> Array:
    """The advantage of every step's action, ``(T, N)``; returns are it plus values.

    An episode that *terminated* is worth nothing after its last step. One that was
    *truncated* (a time limit) is worth ``next_values`` there, the value of the
    observation before the reset. Neither lets later rewards flow back over its end.

    Args:
        rewards: ``(T, N)``, time first; and so are the others.
        values: of the observation in which the action was taken.
        next_values: of the observation that followed, before any reset.

    Source: Schulman et al., "High-dimensional continuous control using generalized
    advantage estimation", ICLR 2016.
    """
    deltas = rewards + gamma * next_values * ~terminated - values  # (T, N)
    carry = gamma * gae_lambda * ~(terminated | truncated)  # (T, N)
    advantages = np.empty_like(deltas, dtype=np.float32)
    following = np.zeros(deltas.shape[1:], dtype=np.float32)  # (N,)
    for t in reversed(range(len(deltas))):
        following = deltas[t] + carry[t] * following
        advantages[t] = following
    return advantages
