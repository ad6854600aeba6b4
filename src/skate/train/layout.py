"""Which shard of a parameter server owns what of a tree of arrays. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .tree import Array, Tree, as_array, flatten, is_tensor, skeleton, unflatten

# numpy 2 has moved it.
_byte_bounds = getattr(np, "byte_bounds", None) or np.lib.array_utils.byte_bounds

# A cut goes to the nearest end of a leaf if that is so near, as a share of a shard:
# a leaf on one shard can be mapped by workers, one that is cut must be put together.
_SLACK = 0.25


@dataclass(frozen=True)
class Leaf:
    """One array of the tree."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def row_size(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64))

    @property
    def size(self) -> int:
        return self.rows * self.row_size


@dataclass(frozen=True)
class Piece:
    """Rows ``start`` to ``stop`` of a leaf, and where a shard keeps them."""

    leaf: int
    start: int
    stop: int
    row_size: int
    block: int  # of the shard: it has one for each dtype
    offset: int  # in elements of the block

    @property
    def size(self) -> int:
        return (self.stop - self.start) * self.row_size

    @property
    def end(self) -> int:
        return self.offset + self.size


@dataclass(frozen=True)
class Part:
    """What one shard owns."""

    pieces: tuple[Piece, ...]
    blocks: tuple[tuple[np.dtype[Any], int], ...]  # dtype and number of elements


@dataclass(frozen=True)
class Layout:
    """How a tree is spread over shards: by whole leaves where that is even enough."""

    form: Tree
    leaves: tuple[Leaf, ...]
    parts: tuple[Part, ...]
    torch: bool  # the leaves are torch tensors

    @cached_property
    def pieces_of(self) -> tuple[tuple[tuple[int, Piece], ...], ...]:
        """Leaf -> the shards and pieces that hold it."""
        found: list[list[tuple[int, Piece]]] = [[] for _ in self.leaves]
        for shard, part in enumerate(self.parts):
            for piece in part.pieces:
                found[piece.leaf].append((shard, piece))
        return tuple(tuple(pieces) for pieces in found)

    def leaf_in(self, leaf: int, blocks: Sequence[Sequence[Array]]) -> Array:
        """A leaf, out of the blocks of all shards: a view, unless it was cut."""
        views = [
            blocks[shard][piece.block][piece.offset : piece.end]
            for shard, piece in self.pieces_of[leaf]
        ]
        shape = self.leaves[leaf].shape
        if len(views) == 1:
            return views[0].reshape(shape)
        if not views:  # no elements: no shard has any
            return np.empty(shape, self.leaves[leaf].dtype)
        return np.concatenate(views).reshape(shape)

    def tree_in(self, blocks: Sequence[Sequence[Array]]) -> Tree:
        """The whole tree of numpy arrays; see ``leaf_in``."""
        leaves = [self.leaf_in(i, blocks) for i in range(len(self.leaves))]
        return unflatten(self.form, leaves)

    def like(self) -> Tree:
        """A tree of this form, of arrays without memory: to compare with."""
        leaves = [
            np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
            for leaf in self.leaves
        ]
        return unflatten(self.form, leaves)

    def split(self, params: Tree) -> list[list[Array]]:
        """Copies of the values of a tree of this form: shard -> its blocks."""
        arrays = [as_array(leaf, path) for path, leaf in flatten(params)]
        made = []
        for part in self.parts:
            blocks = [np.empty(size, dtype) for dtype, size in part.blocks]
            for piece in part.pieces:
                flat = arrays[piece.leaf].reshape(-1)
                first = piece.start * piece.row_size
                blocks[piece.block][piece.offset : piece.end] = flat[
                    first : first + piece.size
                ]
            made.append(blocks)
        return made


def lay_out(params: Tree, num_shards: int) -> Layout:
    """Spread ``params`` evenly, in the order of its leaves.

    Raises:
        ValueError: there is nothing to spread, or too little for so many shards, or
            two leaves share memory, and so would be on two shards.
        TypeError: a leaf is no array of numbers.
    """
    found = flatten(params)
    if not found:
        raise ValueError("params has no arrays: pass a dict, list or tuple of arrays.")
    arrays = [as_array(leaf, path) for path, leaf in found]
    _check_apart(found, arrays)
    leaves = tuple(
        Leaf(path, array.shape, array.dtype)
        for (path, _), array in zip(found, arrays, strict=True)
    )
    rows = sum(leaf.rows for leaf in leaves if leaf.size)
    if not 1 <= num_shards <= rows:
        raise ValueError(
            f"num_shards={num_shards!r}: expected 1 to {rows}, since a shard owns at "
            f"least one row of an array, and params has {rows} of them."
        )
    cuts = [0, *_cuts(leaves, num_shards), rows]
    parts = tuple(
        _part(leaves, start, stop) for start, stop in itertools.pairwise(cuts)
    )
    tensors = any(is_tensor(leaf) for _, leaf in found)
    return Layout(skeleton(params), leaves, parts, tensors)


def _cuts(leaves: Sequence[Leaf], num_shards: int) -> Iterator[int]:
    """Where shards end, in rows of all leaves in a line."""
    full = [leaf for leaf in leaves if leaf.size]
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in full)
    rows = sum(leaf.rows for leaf in full)
    last = 0
    for shard in range(1, num_shards):
        target = total * shard / num_shards
        row = _row_at(full, target, _SLACK * total / num_shards)
        # Each shard, also those that follow, needs a row.
        last = min(max(row, last + 1), rows - (num_shards - shard))
        yield last


def _row_at(leaves: Sequence[Leaf], target: float, slack: float) -> int:
    byte, row = 0, 0
    for leaf in leaves:
        size = leaf.size * leaf.dtype.itemsize
        if byte + size >= target:
            before, after = target - byte, byte + size - target
            if min(before, after) <= slack:
                return row if before <= after else row + leaf.rows
            return row + round(before / (leaf.row_size * leaf.dtype.itemsize))
        byte += size
        row += leaf.rows
    return row


def _part(leaves: Sequence[Leaf], first: int, last: int) -> Part:
    """What lies in rows ``first`` to ``last`` of all leaves in a line."""
    dtypes: dict[np.dtype[Any], int] = {}
    sizes: list[int] = []
    pieces = []
    row = 0
    for i, leaf in enumerate(leaves):
        if not leaf.size:
            continue
        start, stop = max(first - row, 0), min(last - row, leaf.rows)
        row += leaf.rows
        if start >= stop:
            continue
        block = dtypes.setdefault(leaf.dtype, len(dtypes))
        if block == len(sizes):
            sizes.append(0)
        piece = Piece(i, start, stop, leaf.row_size, block, sizes[block])
        sizes[block] = piece.end
        pieces.append(piece)
    return Part(tuple(pieces), tuple(zip(dtypes, sizes, strict=True)))


def _check_apart(found: Sequence[tuple[str, Any]], arrays: Sequence[Array]) -> None:
    """Raise if two leaves share memory: a tied weight must be passed once."""
    spans = sorted(
        (*_byte_bounds(array), path)
        for (path, _), array in zip(found, arrays, strict=True)
        if array.size
    )
    for (_, end, path), (start, _, other) in itertools.pairwise(spans):
        if start < end:
            first, second = sorted((path, other))
            raise ValueError(
                f"{first} and {second} share memory: one parameter would be on two "
                "shards. Pass a tied weight once, or a copy."
            )
