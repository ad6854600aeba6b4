"""concurrent.futures.ProcessPoolExecutor: the pool with futures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed, wait

from ..harness import Timer, Work, idle_share_of_core, memory_bytes
from .process_pool import WORKERS, eight_megabytes, small_value
from .task_api import BURST


def cases(group: str, timer: Timer) -> Iterator[tuple[str, Work]]:
    """What an executor can do of the engine question."""
    start = time.perf_counter()
    with ProcessPoolExecutor(WORKERS) as pool:
        pool.submit(small_value).result()
        first_result = time.perf_counter() - start

        def burst(count: int) -> None:
            wait([pool.submit(small_value) for _ in range(count)])

        def consume() -> None:
            futures = [pool.submit(small_value) for _ in range(BURST)]
            for future in as_completed(futures):
                future.result()

        if group == "start":
            # It forks a worker only when all others are busy.
            wait([pool.submit(time.sleep, 0.2) for _ in range(WORKERS)])
            yield "init to first result", lambda: [first_result]
            yield "memory with 2 idle workers", lambda: [memory_bytes()]
            yield "idle CPU", lambda: [idle_share_of_core(10)]
        elif group == "calls":
            yield (
                "single client tasks sync",
                lambda: timer.calls(lambda: pool.submit(small_value).result()),
            )
            yield (
                "single client tasks async",
                lambda: timer.calls(lambda: burst(1000), per=1000),
            )
            yield (
                "tasks, burst of 10k",
                lambda: timer.calls(lambda: burst(BURST), per=BURST),
            )
            yield (
                "as completed, 10k tasks",
                lambda: timer.calls(consume, per=BURST),
            )
        elif group == "objects":
            yield (
                "task returning 8 MB",
                lambda: timer.calls(lambda: pool.submit(eight_megabytes).result()),
            )
