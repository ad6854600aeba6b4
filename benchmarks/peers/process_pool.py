"""multiprocessing.Pool: the standard library's fastest pool for small tasks."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator

import numpy as np

from ..harness import Samples, Timer, Work, idle_share_of_core, memory_bytes
from .task_api import BURST, MB

WORKERS = len(os.sched_getaffinity(0))


def small_value(_: int = 0) -> bytes:
    """The body of every small task."""
    return b"ok"


def eight_megabytes() -> np.ndarray:
    """An array of float64."""
    return np.ones(MB)


def cases(group: str, timer: Timer) -> Iterator[tuple[str, Work]]:
    """What a pool can do of the engine question: it has no actors and no objects."""
    start = time.perf_counter()
    with multiprocessing.Pool(WORKERS) as pool:
        pool.apply(small_value)
        first_result = time.perf_counter() - start
        if group == "start":
            yield "init to first result", lambda: [first_result]
            yield "memory with 2 idle workers", lambda: [memory_bytes()]
            yield "idle CPU", lambda: [idle_share_of_core(10)]
        elif group == "calls":

            def mapped(count: int) -> Samples:
                # chunksize=1: each task is handed out alone, as the others do.
                return timer.calls(
                    lambda: pool.map(small_value, range(count), chunksize=1), per=count
                )

            def as_completed() -> None:
                for _ in pool.imap_unordered(small_value, range(BURST)):
                    pass

            yield (
                "single client tasks sync",
                lambda: timer.calls(lambda: pool.apply(small_value)),
            )
            yield "single client tasks async", lambda: mapped(1000)
            yield "tasks, burst of 10k", lambda: mapped(BURST)
            yield (
                "as completed, 10k tasks",
                lambda: timer.calls(as_completed, per=BURST),
            )
        elif group == "objects":
            yield (
                "task returning 8 MB",
                lambda: timer.calls(lambda: pool.apply(eight_megabytes)),
            )
