"""Gradients that learners average through a parameter server, as the Ray paper does.

The server only adds up: every learner reads the mean, clips it and steps by itself.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from skate.train import ParameterServer

from .policy import Weights, hidden_sizes

GRADIENT = "gradient"


def gradient_server(initial: Weights, num_learners: int) -> ParameterServer:
    """A server for PPO's gradients, as one flat array, with a shard in each learner."""
    return ParameterServer(
        {GRADIENT: np.zeros(_num_parameters(initial), np.float32)},
        num_shards=num_learners,
        optimizer=None,
        reduce="mean",
        placement="workers",
    )


def _num_parameters(initial: Weights) -> int:
    """Of the policy, and of the value network, which has its layers but one output."""
    depth = len(hidden_sizes(initial)) + 1
    layers = [initial[f"{kind}{i}"] for i in range(depth) for kind in "wb"]
    policy = sum(layer.size for layer in layers)
    last_weight, last_bias = layers[-2:]
    value = policy - last_weight.size - last_bias.size + last_weight.shape[1] + 1
    log_std = initial["log_std"].size if "log_std" in initial else 0
    return int(policy + value + log_std)


class ServedGradients:
    """This learner's end of such a server."""

    def __init__(self, model: nn.Module, server: ParameterServer) -> None:
        self._parameters = list(model.parameters())
        self._sizes = [p.numel() for p in self._parameters]
        self._worker = server.join()
        self._worker.pull()

    def average(self) -> None:
        """Replace every gradient by the mean over all learners."""
        mine = torch.cat([_gradient(p).reshape(-1) for p in self._parameters])
        mean = self._worker.step({GRADIENT: mine.numpy()})[GRADIENT]
        parts = torch.split(torch.tensor(mean), self._sizes)
        for p, part in zip(self._parameters, parts, strict=True):
            p.grad = part.view_as(p)


def _gradient(p: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad
