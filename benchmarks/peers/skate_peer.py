"""skate's default engine; SKATE_ENGINE chooses another."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..harness import Samples, Timer, Work, memory_bytes
from . import task_api


def cases(group: str, timer: Timer) -> Iterator[tuple[str, Work]]:
    """skate's share of the engine question, and the calls that only it has."""
    import skate

    def init() -> None:
        skate.init(num_cpus=len(os.sched_getaffinity(0)))

    if group == "busy":
        yield "busy workers, two a core: time beside a pool's, in pairs", _busy
        return
    shared = task_api.cases(skate, init, group, timer)
    if group == "start":
        for named in shared:
            yield named
            if named[0] == "actor start from warm":  # while the engine runs
                yield "memory with 256 idle actors", _many_actors
    if group == "calls":
        # The engine runs while the shared cases do: join them before they end.
        yield next(shared)
        yield "as completed, 10k tasks", lambda: _as_completed(timer)
    yield from shared


def compute(n: int) -> int:
    """Some 20 ms of Python."""
    return sum(i * i for i in range(n))


def _busy() -> Samples:
    """Our time for tasks that compute, as a share of a pool's."""
    import skate

    workers = 2 * len(os.sched_getaffinity(0))
    work = [300_000] * 10 * workers

    def seconds(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    shares = []
    with multiprocessing.Pool(workers) as pool, skate.init(num_cpus=workers):
        task = skate.remote(compute)

        def ours() -> None:
            skate.get([task.remote(n) for n in work])

        def theirs() -> None:
            pool.map(compute, work, chunksize=1)

        for pair in range(13):
            if pair % 2:
                took, against = seconds(ours), seconds(theirs)
            else:
                against, took = seconds(theirs), seconds(ours)
            shares.append(took / against)
    return shares[1:]  # the first one starts the workers


def _many_actors() -> Samples:
    import skate

    @skate.remote
    class Actor:
        def small_value(self) -> bytes:
            return b"ok"

    actors = [Actor.remote() for _ in range(256)]
    skate.get([actor.small_value.remote() for actor in actors])
    return [memory_bytes()]


def _as_completed(timer: Timer) -> Samples:
    import skate

    @skate.remote
    def small_value() -> bytes:
        return b"ok"

    def work() -> None:
        refs = [small_value.remote() for _ in range(task_api.BURST)]
        for ref in skate.as_completed(refs):
            skate.get(ref)

    return timer.calls(work, per=task_api.BURST)
