"""Room in a rank's part of a group's memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest

_core = pytest.importorskip("skate._core", reason="skate's C++ core is not built")

_AREA = 1 << 20
_MOST_OF_IT = 600 << 10


@pytest.fixture
def ranks() -> Iterator[list[_core.Group]]:
    """The three ends of a group, in one process."""
    size = _core.group_segment_bytes(3, _AREA)
    fd = _core.make_memfd("test", size)
    try:
        yield [_core.Group(fd, size, rank, 3) for rank in range(3)]
    finally:
        os.close(fd)


MAKE: dict[str, Callable[[_core.Group], object]] = {
    "message": lambda rank: rank.send(np.zeros(_MOST_OF_IT, np.uint8), 2, 10.0),
    "array": lambda rank: rank.empty(_MOST_OF_IT),
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_messages_that_were_received_make_room(
    ranks: list[_core.Group], make: Callable[[_core.Group], object]
) -> None:
    message = np.ones(_MOST_OF_IT, np.uint8)
    assert ranks[0].send(message, 1, 10.0) is None
    with pytest.raises(MemoryError):  # it has not been received
        make(ranks[0])
    received = np.zeros_like(message)
    assert ranks[1].recv(received, 0, 10.0) is None
    assert (received == 1).all()
    make(ranks[0])
