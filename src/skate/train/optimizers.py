"""Optimizers that parameter-server shards apply, a piece of memory at a time.

Each does what torch's of the same name does, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .tree import Array

Schedule = float | Callable[[int], float]
# What a user may give: (weights, gradient, state, step), changes weights in place.
Function = Callable[[Array, Array, dict[str, Any], int], object]


@dataclass(frozen=True)
class Rows:
    """The gradient of some rows of an array; all its other rows have none.

    Attributes:
        indices: (R,), of rows of the array; one that comes twice counts twice.
        values: (R, ...), the rows' gradients.
    """

    indices: Array
    values: Array


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, with momentum and weight decay as in torch.

    Args:
        lr: the learning rate, or a function of the step, which counts from 0.
    """

    lr: Schedule
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def apply(
        self,
        weights: Array,
        gradient: Array,
        state: Sequence[Array],
        out: Array,
        step: int,
    ) -> None:
        """Write the next weights into ``out``; uses up ``gradient``, updates state."""
        rate = _rate(self.lr, step)
        if self.weight_decay:
            gradient += self.weight_decay * weights
        if self.momentum:
            (velocity,) = state
            velocity *= self.momentum
            velocity += gradient
            if self.nesterov:
                gradient += self.momentum * velocity
            else:
                np.multiply(velocity, rate, gradient)
                np.subtract(weights, gradient, out)
                return
        gradient *= rate
        np.subtract(weights, gradient, out)


@dataclass(frozen=True)
class Adam:
    """Adam, as in torch. Source: Kingma and Ba, https://arxiv.org/abs/1412.6980."""

    lr: Schedule = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("mean", "square")

    def apply(
        self,
        weights: Array,
        gradient: Array,
        state: Sequence[Array],
        out: Array,
        step: int,
    ) -> None:
        """See ``SGD.apply``."""
        first, second = self.betas
        mean, square = state
        if self.weight_decay:
            gradient += self.weight_decay * weights
        mean += (1 - first) * (gradient - mean)
        square *= second
        np.multiply(gradient, gradient, gradient)
        gradient *= 1 - second
        square += gradient
        np.sqrt(square, gradient)
        gradient /= (1 - second ** (step + 1)) ** 0.5
        gradient += self.eps
        np.divide(mean, gradient, gradient)
        gradient *= _rate(self.lr, step) / (1 - first ** (step + 1))
        np.subtract(weights, gradient, out)


def _rate(schedule: Schedule, step: int) -> float:
    return schedule(step) if callable(schedule) else schedule


Optimizer = SGD | Adam | Function | None


def check_optimizer(optimizer: Any) -> None:
    """Raises TypeError, ValueError: it cannot be used on a server."""
    if optimizer is not None and not callable(optimizer):
        if not isinstance(optimizer, (SGD, Adam)):
            raise TypeError(
                f"optimizer={optimizer!r}; expected train.SGD(...), train.Adam(...), a "
                "function of (weights, gradient, state, step), or None. A server "
                "updates slices of the weights: an optimizer of torch or Keras cannot."
            )
        if not callable(optimizer.lr) and not optimizer.lr >= 0:
            raise ValueError(f"lr={optimizer.lr!r}; expected zero or more.")
