"""skate's default engine; SKATE_ENGINE chooses another."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ..harness import Samples, Timer, Work, memory_bytes
from . import task_api


def cases(group: str, timer: Timer) -> Iterator[tuple[str, Work]]:
    """skate's share of the engine question, and the calls that only it has."""
    import skate

    def init() -> None:
        skate.init(num_cpus=len(os.sched_getaffinity(0)))

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
