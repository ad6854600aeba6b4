"""What every peer of the training question does alike: the model, data and timing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..harness import Samples
from .resnet import resnet101

WORKERS = 2
BATCH = {"comm": 2, "heavy": 8}
PIXELS = {"comm": 64, "heavy": 224}
WARM_UP = {"comm": 4, "heavy": 1}
WINDOW = {"comm": 10, "heavy": 1}  # iterations of a sample
WINDOWS = {"comm": 3, "heavy": 3}
PAIRS = {"comm": 20, "heavy": 10}
LEARNING_RATE = 1e-3
MOMENTUM = 0.9


def make_model(rank: int = 0) -> nn.Module:
    """One thread for torch, and ResNet-101."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    return resnet101()


def make_sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=MOMENTUM)


def make_backward(model: nn.Module, setting: str, rank: int) -> Callable[[], None]:
    """Forward and backward of one batch of synthetic images."""
    torch.manual_seed(100 + rank)
    size = PIXELS[setting]
    images = torch.randn(BATCH[setting], 3, size, size)
    labels = torch.randint(0, 1000, (BATCH[setting],))
    loss = nn.CrossEntropyLoss()

    def backward() -> None:
        loss(model(images), labels).backward()

    return backward


def make_iteration(backward: Callable[[], None], optimizer: Any) -> Callable[[], None]:
    """Zero, backward, step, as most scripts have it."""

    def iteration() -> None:
        optimizer.zero_grad()
        backward()
        optimizer.step()

    return iteration


def time_windows(
    iteration: Callable[[], None],
    setting: str,
    meet: Callable[[], object],
    extra: int = 0,
) -> Samples:
    """Seconds an image of all workers together, for each window, once warm."""
    for _ in range(WARM_UP[setting] + extra):
        iteration()
    samples = []
    for _ in range(WINDOWS[setting]):
        meet()
        start = time.perf_counter()
        for _ in range(WINDOW[setting]):
            iteration()
        took = time.perf_counter() - start
        samples.append(took / (WINDOW[setting] * BATCH[setting] * WORKERS))
    return samples


def slowest(by_rank: list[Samples]) -> Samples:
    return [max(windows) for windows in zip(*by_rank, strict=True)]
