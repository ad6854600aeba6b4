"""What the peers of the allreduce question share: how a rank times its calls."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..allreduce import CALLS, SIZES, WARM_UP, name_of
from ..harness import Samples, Work
from .spawned import answers

Reduce = Callable[[Any], Any]


def time_calls(size: str, x: Any, reduce: Reduce, check: bool = True) -> Samples:
    """Seconds of each call on this rank, once warm. ``x`` is an array."""
    array = np.asarray(x)
    samples = []
    for call in range(-WARM_UP[size], CALLS[size]):
        if call == -1 and check:
            array[...] = 1
        start = time.perf_counter()
        reduce(x)
        took = time.perf_counter() - start
        if call >= 0:
            samples.append(took)
        elif call == -1 and check and not (array == array[0]).all():
            raise AssertionError("the ranks did not add up")
        if size != "4 KB":
            array[...] = 1  # sums stay finite; warm like gradients just made
    return samples


def measure_all(
    ranks: int, make: Callable[[str], Iterator[tuple[str, Any, Reduce]]]
) -> dict[str, Samples]:
    """Every size, in this rank: ``make`` gives arrays and what reduces them."""
    found = {}
    for size in SIZES:
        for name, x, reduce in make(size):
            found[name] = time_calls(size, x, reduce)
    return found


def in_processes(
    worker: Callable[..., None], ranks: int, *arguments: Any
) -> dict[str, Samples]:
    """Run ``worker(rank, ranks, *arguments, pipe)``; samples of the slowest rank."""
    os.environ["OMP_NUM_THREADS"] = "1"
    return slowest([json.loads(a) for a in answers(worker, ranks, ranks, *arguments)])


def slowest(by_rank: list[dict[str, Samples]]) -> dict[str, Samples]:
    """By case, each call's time on the rank where it took longest."""
    return {
        name: [
            max(calls) for calls in zip(*(one[name] for one in by_rank), strict=True)
        ]
        for name in by_rank[0]
    }


def as_cases(
    measure: Callable[[], dict[str, Samples]], ranks: int, kinds: tuple[bool, ...]
) -> Iterator[tuple[str, Work]]:
    """One measurement, handed out case by case."""
    found: dict[str, Samples] = {}

    def work(name: str) -> Samples:
        if not found:
            found.update(measure())
        return found[name]

    for size in SIZES:
        for copied in kinds:
            name = name_of(ranks, size, copied)
            yield name, lambda name=name: work(name)
