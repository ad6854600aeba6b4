"""Ray, started as `ray microbenchmark` starts it, with as many CPUs as skate gets."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

from ..harness import Timer, Work
from . import task_api

# A benchmark sends no usage report.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def cases(group: str, timer: Timer) -> Iterator[tuple[str, Work]]:
    """Ray's share of the engine question."""
    import ray

    def init() -> None:
        ray.init(
            num_cpus=len(os.sched_getaffinity(0)),
            logging_level=logging.ERROR,
            log_to_driver=False,
        )

    yield from task_api.cases(ray, init, group, timer)
