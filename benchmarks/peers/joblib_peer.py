"""joblib with its default backend (loky) and its default, automatic batching."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ..harness import Timer, Work, idle_share_of_core, memory_bytes
from .process_pool import WORKERS, eight_megabytes, small_value
from .task_api import BURST


def cases(group: str, timer: Timer) -> Iterator[tuple[str, Work]]:
    """What joblib can do of the engine question: maps, no single calls."""
    from joblib import Parallel, delayed

    start = time.perf_counter()
    with Parallel(n_jobs=WORKERS) as parallel:
        parallel([delayed(small_value)()])
        first_result = time.perf_counter() - start

        def burst(count: int) -> None:
            parallel(delayed(small_value)() for _ in range(count))

        if group == "start":
            parallel(delayed(time.sleep)(0.2) for _ in range(WORKERS))
            yield "init to first result", lambda: [first_result]
            yield "memory with 2 idle workers", lambda: [memory_bytes()]
            yield "idle CPU", lambda: [idle_share_of_core(10)]
        elif group == "calls":
            yield (
                "single client tasks async",
                lambda: timer.calls(lambda: burst(1000), per=1000),
            )
            yield (
                "tasks, burst of 10k",
                lambda: timer.calls(lambda: burst(BURST), per=BURST),
            )
        elif group == "objects":
            yield (
                "task returning 8 MB",
                lambda: timer.calls(lambda: parallel([delayed(eight_megabytes)()])),
            )
