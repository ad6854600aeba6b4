"""Which rows of a data set a rank trains on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .tree import is_tensor


@dataclass(frozen=True)
class Subset:
    """Some items of a sequence, by index. A data set of torch, too."""

    dataset: Any
    indices: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


def take(dataset: Any, rank: int, world_size: int, seed: tuple[int, int] | None) -> Any:
    """The rows of ``rank``; in another order for each seed, or in that of the data."""
    parts = _parts(dataset)
    sizes = {len(part) for part in parts}
    if len(sizes) > 1:
        raise ValueError(
            f"the parts of the data set differ in length: {sorted(sizes)} rows."
        )
    (size,) = sizes
    if size < world_size:
        raise ValueError(
            f"the data set has {size} rows for {world_size} ranks: each needs at least "
            "one. Use fewer workers."
        )
    order = np.arange(size)
    if seed is not None:
        order = np.random.default_rng(seed).permutation(size)
    chosen = order[: size - size % world_size][rank::world_size]
    if isinstance(dataset, dict):
        return {name: _rows(part, chosen) for name, part in dataset.items()}
    if isinstance(dataset, tuple):
        return tuple(_rows(part, chosen) for part in dataset)
    return _rows(dataset, chosen)


def _parts(dataset: Any) -> Sequence[Any]:
    if isinstance(dataset, dict):
        return list(dataset.values())
    return dataset if isinstance(dataset, tuple) else [dataset]


def _rows(part: Any, chosen: npt.NDArray[np.int64]) -> Any:
    if isinstance(part, np.ndarray):
        return part[chosen]
    if is_tensor(part):
        import torch

        return part[torch.from_numpy(chosen)]
    return Subset(part, chosen)
