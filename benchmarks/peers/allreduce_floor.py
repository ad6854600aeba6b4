"""The floor: ranks that spin at barriers add shares of all arrays into one more."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..allreduce import SIZES, name_of
from ..harness import Timer, Work
from .allreduce_ranks import Reduce, as_cases, in_processes, measure_all

_PAGE = 4096


def rank(rank: int, ranks: int, parent: int, fd: int, pipe: Any) -> None:
    """One rank, in its own process."""
    memory = mmap.mmap(os.open(f"/proc/{parent}/fd/{fd}", os.O_RDWR), 0)
    counts = np.frombuffer(memory, np.int64, count=ranks * 8)[::8]
    floats = np.frombuffer(memory, np.float32, offset=_PAGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)

    def meet() -> None:
        counts[rank] += 1
        mine = counts[rank]
        turns = 0
        while (counts < mine).any():
            turns += 1
            if turns > 20:  # more ranks than cores: let another one come
                os.sched_yield()

    def make(size: str) -> Iterator[tuple[str, Any, Reduce]]:
        most = max(SIZES.values())
        arrays = [floats[r * most :][: SIZES[size]] for r in range(ranks + 1)]
        share = -(-SIZES[size] // ranks)
        mine = [array[rank * share : (rank + 1) * share] for array in arrays]

        def reduce(_: Any) -> None:
            meet()
            np.add(mine[0], mine[1], out=mine[-1])
            for other in mine[2:-1]:
                np.add(mine[-1], other, out=mine[-1])
            meet()

        yield name_of(ranks, size), arrays[rank], reduce

    pipe.send(json.dumps(measure_all(ranks, make)))


def cases(group: str, timer: Timer) -> Iterator[tuple[str, Work]]:
    """In shared memory that is warm."""
    ranks = int(group)
    fd = os.memfd_create("floor")
    os.ftruncate(fd, _PAGE + (ranks + 1) * 4 * max(SIZES.values()))
    yield from as_cases(
        lambda: in_processes(rank, ranks, os.getpid(), fd), ranks, (False,)
    )
    os.close(fd)
