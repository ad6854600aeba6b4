"""Running mean and standard deviation, the same on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .policy import Array


class RunningMoments:
    """Of all rows that any rank has added; 0 and 1 before the first.

    Args:
        size: length of a row.
        allreduce: replaces a float64 array by its sum over the ranks, in place.
    """

    def __init__(self, size: int, allreduce: Callable[[Any], Any]) -> None:
        self.sums = np.zeros((3, size))  # count, sum and sum of squares, of each column
        self._allreduce = allreduce

    def add(self, rows: Array) -> None:
        """Add rows of shape ``(..., size)``. Every rank must call it."""
        x = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
        new = np.stack([np.full(x.shape[1], len(x)), x.sum(0), np.square(x).sum(0)])
        self._allreduce(new)
        self.sums += new

    @property
    def mean(self) -> Array:
        count, total, _ = self.sums
        return (total / np.maximum(count, 1)).astype(np.float32)

    @property
    def std(self) -> Array:
        count, total, squares = self.sums
        if not count.any():
            return np.ones(len(count), np.float32)
        variance = squares / count - np.square(total / count)
        return np.sqrt(np.maximum(variance, 1e-8)).astype(np.float32)
