"""Where gradients go: one flat array a dtype, cut for sending and for stepping.

Pure arithmetic. Parameters stand in the order in which backward makes their gradients:
the last one first. Three cuts of the flat array:

- slots: one parameter each, from a multiple of a cache line;
- buckets: consecutive slots, reduced together while backward goes on;
- pieces: what one rank updates of one parameter, small enough for a core's cache. A
  rank owns one contiguous share of the array, so a few parameters have two owners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LINE = 16  # elements: a cache line of float32, and more of wider ones


@dataclass(frozen=True)
class Slot:
    """The elements ``[start, end)`` of the flat array are one parameter's."""

    parameter: int
    start: int
    end: int


@dataclass(frozen=True)
class Bucket:
    """The elements ``[start, end)``, which hold the slots ``[first, last)``."""

    start: int
    end: int
    first: int
    last: int


@dataclass(frozen=True)
class Piece:
    """The elements ``[start, end)``, of one slot, which ``owner`` updates."""

    slot: int
    start: int
    end: int
    owner: int


@dataclass(frozen=True)
class Layout:
    """A flat array of ``size`` elements; each rank owns ``share`` of them, in order."""

    size: int
    share: int
    slots: tuple[Slot, ...]
    buckets: tuple[Bucket, ...]
    pieces: tuple[Piece, ...]


def lay_out(
    sizes: Sequence[int], *, world_size: int, bucket_items: int, piece_items: int
) -> Layout:
    """The layout of parameters of ``sizes`` elements, in the order of the model.

    Args:
        bucket_items: a bucket is closed when it holds at least so many elements.
        piece_items: the most elements of a piece.
    """
    slots = []
    at = 0
    for parameter in reversed(range(len(sizes))):
        slots.append(Slot(parameter, at, at + sizes[parameter]))
        at += _up(sizes[parameter], LINE)
    share = _up(-(-at // world_size), LINE)
    pieces = [
        piece
        for number, slot in enumerate(slots)
        for piece in _cut(number, slot, share, piece_items)
    ]
    return Layout(
        at, share, tuple(slots), tuple(_buckets(slots, bucket_items)), tuple(pieces)
    )


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _buckets(slots: Sequence[Slot], bucket_items: int) -> list[Bucket]:
    buckets = []
    first = 0
    for number, slot in enumerate(slots):
        start = slots[first].start
        if slot.end - start >= bucket_items or number == len(slots) - 1:
            buckets.append(Bucket(start, slot.end, first, number + 1))
            first = number + 1
    return buckets


def _cut(number: int, slot: Slot, share: int, piece_items: int) -> list[Piece]:
    pieces = []
    start = slot.start
    while start < slot.end:
        owner = start // share
        end = min(slot.end, (owner + 1) * share)
        count = -(-(end - start) // piece_items)
        step = _up(-(-(end - start) // count), LINE)
        pieces += [
            Piece(number, at, min(end, at + step), owner)
            for at in range(start, end, step)
        ]
        start = end
    return pieces
