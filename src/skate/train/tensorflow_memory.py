"""Places in a group's memory for the tensors of a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from .context import Context

ALIGNMENT = 64  # bytes: TensorFlow reads such arrays in place


class Places:
    """One flat array of the group for each dtype, in which every tensor has its place.

    Args:
        like: tensors or variables of the same dtypes and shapes; alike on every rank.
    """

    def __init__(self, context: Context, like: Sequence[Any]) -> None:
        sizes: dict[Any, int] = {}
        starts = []
        for tensor in like:
            dtype = np.dtype(tf.as_dtype(tensor.dtype).as_numpy_dtype)
            used = sizes.get(dtype, 0) * dtype.itemsize
            start = -(-used // ALIGNMENT) * ALIGNMENT // dtype.itemsize
            count = int(np.prod(tensor.shape, dtype=np.int64))
            starts.append((dtype, start, count, tuple(tensor.shape)))
            sizes[dtype] = start + count
        self._starts = starts
        self.flats = {d: context.empty(size, d) for d, size in sizes.items()}
        self.views = self._views(self.flats)  # by tensor
        self.nbytes = [view.nbytes for view in self.views]

    def peers(self, context: Context) -> list[list[np.ndarray]] | None:
        """Every rank's views, by rank; None if ranks share no memory. Collective."""
        by_dtype = {d: context.group.peers(flat) for d, flat in self.flats.items()}
        if any(flats is None for flats in by_dtype.values()):
            return None
        return [
            self._views({d: flats[rank] for d, flats in by_dtype.items() if flats})
            for rank in range(context.world_size)
        ]

    def _views(self, flats: dict[Any, np.ndarray]) -> list[np.ndarray]:
        return [
            flats[dtype][start : start + count].reshape(shape)
            for dtype, start, count, shape in self._starts
        ]


def buckets(order: Iterable[int], nbytes: Sequence[int], limit: int) -> list[list[int]]:
    """Consecutive numbers of ``order`` whose tensors have up to ``limit`` bytes."""
    found: list[list[int]] = []
    size = 0
    for i in order:
        if not found or size + nbytes[i] > limit:
            found.append([])
            size = 0
        found[-1].append(i)
        size += nbytes[i]
    return found
