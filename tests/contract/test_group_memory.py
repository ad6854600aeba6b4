"""Whose memory the arrays of a group are, and for how long."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_groups import on_every_rank, start_ranks

pytestmark = pytest.mark.usefixtures("engine")


def make_arrays(group: Any) -> list[np.ndarray]:
    """Of many sizes, so that memory that is free is certain to be among them."""
    arrays = [group.empty(size, np.uint8) for size in (64, 128, 192, 256, 300, 1000)]
    for array in arrays:
        array[...] = 255
    return arrays


def share_and_forget(group: Any) -> bool:
    mine = group.empty(1000, np.uint8)
    mine[...] = group.rank
    peers = group.peers(mine)
    if peers is None:  # across machines
        return True
    del mine
    arrays = make_arrays(group)
    group.barrier()
    kept = all((peers[rank] == rank).all() for rank in range(group.world_size))
    group.barrier()
    return kept and all((array == 255).all() for array in arrays)


def test_the_list_of_peers_keeps_the_own_array() -> None:
    assert all(on_every_rank(start_ranks(), share_and_forget))


def take_rounds_beside_arrays(group: Any) -> bool:
    rounds = group.rounds()
    if rounds is None:
        return True
    arrays = make_arrays(group)
    seen = 0
    for number in range(1, 4):
        if group.rank == 0:
            assert rounds.begin() == number
            assert rounds.wait(20.0)
        else:
            seen = rounds.next(seen, 20.0)
            assert seen == number
            rounds.end(group.rank - 1, seen)
    return all((array == 255).all() for array in arrays)


def test_rounds_share_no_memory_with_later_arrays() -> None:
    assert all(on_every_rank(start_ranks(), take_rounds_beside_arrays))


def shapes_of_numpy_integers(group: Any) -> list[tuple[int, ...]]:
    sizes = [np.int64(3), (np.int64(2), 3), [2, 3]]
    return [group.empty(size, "f4").shape for size in sizes]


def test_a_shape_may_be_any_integer_or_several() -> None:
    for shapes in on_every_rank(start_ranks(), shapes_of_numpy_integers):
        assert shapes == [(3,), (2, 3), (2, 3)]
