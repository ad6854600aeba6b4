"""Between a policy's weights, which are arrays, and the torch network that learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .policy import Array, Weights, hidden_sizes


def network(weights: Weights) -> nn.Sequential:
    """The tanh network with these weights, as ``GaussianPolicy.mean`` computes it."""
    layers: list[nn.Module] = []
    for i in range(len(hidden_sizes(weights)) + 1):
        weight = torch.tensor(weights[f"w{i}"])
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight = nn.Parameter(weight)
        linear.bias = nn.Parameter(torch.tensor(weights[f"b{i}"]))
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def network_weights(net: nn.Sequential) -> dict[str, Array]:
    """The inverse of :func:`network`; copies."""
    weights = {}
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    for i, layer in enumerate(linear):
        weights[f"w{i}"] = to_numpy(layer.weight)
        weights[f"b{i}"] = to_numpy(layer.bias)
    return weights


def to_numpy(tree: Any) -> Any:
    """Tensors in ``tree`` as arrays, copied: checkpoints are read without torch."""
    if isinstance(tree, Tensor):
        return tree.detach().numpy().copy()
    if isinstance(tree, dict):
        return {key: to_numpy(value) for key, value in tree.items()}
    return tree


def to_torch(tree: Any) -> Any:
    """The inverse of :func:`to_numpy`."""
    if isinstance(tree, np.ndarray):
        return torch.tensor(tree)
    if isinstance(tree, dict):
        return {key: to_torch(value) for key, value in tree.items()}
    return tree
