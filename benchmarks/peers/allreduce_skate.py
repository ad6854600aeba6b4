"""skate.collective, on actors of the embedded engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import skate
from skate.collective import GroupSpec, create_group

from ..allreduce import SIZES, name_of
from ..harness import Samples, Timer, Work
from .allreduce_ranks import Reduce, as_cases, measure_all, slowest


@skate.remote(num_cpus=0)
class Rank:
    """One rank, in its own process."""

    def measure(self, spec: GroupSpec, rank: int) -> dict[str, Samples]:
        group = spec.join(rank)

        def make(size: str) -> Iterator[tuple[str, Any, Reduce]]:
            shape = (SIZES[size],)
            yield name_of(spec.world_size, size), group.empty(shape, "f4"), reduce
            yield name_of(spec.world_size, size, True), np.empty(shape, "f4"), reduce

        def reduce(x: Any) -> None:
            group.allreduce(x)

        try:
            return measure_all(spec.world_size, make)
        finally:
            group.close()


def cases(group: str, timer: Timer) -> Iterator[tuple[str, Work]]:
    """Arrays of the group, and ordinary ones."""
    ranks = int(group)

    def measure() -> dict[str, Samples]:
        skate.init("embedded")
        actors = [Rank.remote() for _ in range(ranks)]
        spec = create_group(ranks)
        calls = [actor.measure.remote(spec, rank) for rank, actor in enumerate(actors)]
        try:
            return slowest(skate.get(calls))
        finally:
            skate.shutdown()

    yield from as_cases(measure, ranks, (False, True))
