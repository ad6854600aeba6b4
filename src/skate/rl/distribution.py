"""The actions of a policy as torch sees them: their probabilities, and the entropy."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .network import to_numpy
from .policy import Array, Weights


class Distribution(Protocol):
    """Of actions, given the outputs of the policy's network, ``(b, A)``."""

    parameters: dict[str, nn.Parameter]  # learnt, beside the network's

    def tensor(self, actions: npt.NDArray[Any]) -> Tensor:
        """Actions of rollouts, ``(B, ...)``, as :meth:`log_probs` takes them."""

    def log_probs_served(self, log_probs: Array) -> Array:
        """What the served policy recorded, in the units of :meth:`log_probs`."""

    def log_probs(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Of each action under the policy as it is: ``(b,)``."""

    def entropy(self, outputs: Tensor) -> Tensor:
        """The mean over the rows, but for a constant: a scalar."""

    def figures(self, outputs: Tensor) -> dict[str, float]:
        """What to watch of it."""

    def weights(self) -> dict[str, Array]:
        """Its part of the served policy's weights."""


class Gaussian:
    """Independent in each of A numbers, in units of the policy's action scale."""

    def __init__(self, initial: Weights) -> None:
        self._log_std = nn.Parameter(torch.tensor(initial["log_std"]))
        self._center, self._unit = initial["action_center"], initial["action_scale"]
        self.parameters = {"log_std": self._log_std}

    def tensor(self, actions: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy((actions - self._center) / self._unit)

    def log_probs_served(self, log_probs: Array) -> Array:
        # A density over scaled actions: larger by the volume of their unit.
        scaled: Array = log_probs + np.log(self._unit).sum()
        return scaled

    def log_probs(self, outputs: Tensor, actions: Tensor) -> Tensor:
        noise = (actions - outputs) * torch.exp(-self._log_std)
        density = -0.5 * noise.square() - self._log_std - 0.5 * math.log(2 * math.pi)
        joint: Tensor = density.sum(dim=1)
        return joint

    def entropy(self, outputs: Tensor) -> Tensor:
        return self._log_std.sum()

    def figures(self, outputs: Tensor) -> dict[str, float]:
        return {"action_std": self._log_std.detach().exp().mean().item()}

    def weights(self) -> dict[str, Array]:
        return {"log_std": to_numpy(self._log_std)}


class Categorical:
    """One of A actions, whose unnormalised log probabilities the network gives."""

    def __init__(self) -> None:
        self.parameters: dict[str, nn.Parameter] = {}

    def tensor(self, actions: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(actions)

    def log_probs_served(self, log_probs: Array) -> Array:
        return log_probs

    def log_probs(self, outputs: Tensor, actions: Tensor) -> Tensor:
        every = torch.log_softmax(outputs, dim=1)  # (b, A)
        return every.gather(1, actions[:, None])[:, 0]

    def entropy(self, outputs: Tensor) -> Tensor:
        log_probs = torch.log_softmax(outputs, dim=1)
        return -(log_probs.exp() * log_probs).sum(dim=1).mean()

    def figures(self, outputs: Tensor) -> dict[str, float]:
        return {"entropy": self.entropy(outputs).item()}

    def weights(self) -> dict[str, Array]:
        return {}


def distribution(initial: Weights) -> Distribution:
    """What the policy with these weights draws its actions from."""
    return Gaussian(initial) if "log_std" in initial else Categorical()
