"""The cases that skate and Ray share, written once: both have the same names.

``api`` is the module ``skate`` or ``ray``. Cases that `ray microbenchmark` has keep its
names and its work (Ray 2.60, ray/_private/ray_perf.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..harness import Samples, Timer, Work, idle_share_of_core, memory_bytes

MB = 1_000_000
BURST = 10_000
FANOUT, DEPTH = 4, 3

Named = tuple[str, Work]
Api = Any  # skate or ray: two modules that share no type


def cases(
    api: Api, init: Callable[[], object], group: str, timer: Timer
) -> Iterator[Named]:
    """The cases of ``group``, in an order that is the same for both."""
    groups = {"calls": _calls, "objects": _objects}
    if group == "start":
        yield from _start(api, init)
    elif group in groups:
        init()
        yield from groups[group](api, timer)
    api.shutdown()


def _start(api: Api, init: Callable[[], object]) -> Iterator[Named]:
    @api.remote
    def hold() -> bytes:
        time.sleep(0.2)
        return b"ok"

    def first_result() -> Samples:
        @api.remote
        def small_value() -> bytes:
            return b"ok"

        start = time.perf_counter()
        init()
        api.get(small_value.remote())
        return [time.perf_counter() - start]

    @api.remote(num_cpus=0)
    class Actor:
        def small_value(self) -> bytes:
            return b"ok"

    def actor_start() -> Samples:
        took = []
        for _ in range(12):
            start = time.perf_counter()
            actor = Actor.remote()
            api.get(actor.small_value.remote())
            took.append(time.perf_counter() - start)
            del actor  # it ends
            time.sleep(0.05)
        return took[2:]

    yield "init to first result", first_result
    api.get([hold.remote(), hold.remote()])  # both workers have run, and are idle now
    yield "memory with 2 idle workers", lambda: [memory_bytes()]
    yield "idle CPU", lambda: [idle_share_of_core(10)]
    yield "actor start from warm", actor_start


def _calls(api: Api, timer: Timer) -> Iterator[Named]:
    @api.remote
    def small_value() -> bytes:
        return b"ok"

    @api.remote(num_cpus=0)
    class Actor:
        def small_value(self) -> bytes:
            return b"ok"

    @api.remote
    class AsyncActor:
        async def small_value(self) -> bytes:
            return b"ok"

    @api.remote
    def tree(depth: int) -> int:
        if depth == 0:
            return 1
        return sum(api.get([tree.remote(depth - 1) for _ in range(FANOUT)]))

    @api.remote
    def starts_many(count: int) -> float:
        start = time.perf_counter()
        api.get([small_value.remote() for _ in range(count)])
        return (time.perf_counter() - start) / count

    def sync(call: Any) -> Work:
        return lambda: timer.calls(lambda: api.get(call.remote()))

    def pipelined(call: Any, count: int) -> Work:
        def work() -> None:
            api.get([call.remote() for _ in range(count)])

        return lambda: timer.calls(work, per=count)

    def wait_1k_refs() -> None:
        not_ready = [small_value.remote() for _ in range(1000)]
        while not_ready:
            _, not_ready = api.wait(not_ready)

    def wait_one_of_10k_refs() -> Samples:
        refs = [small_value.remote() for _ in range(BURST)]
        took = []
        for _ in range(20):
            start = time.perf_counter()
            _, refs = api.wait(refs)
            took.append(time.perf_counter() - start)
        api.get(refs)
        return took

    def wait_for_a_value() -> Samples:
        refs = [api.put(i) for i in range(BURST)]
        return timer.calls(lambda: api.wait(refs))

    def nested() -> None:
        assert api.get(tree.remote(DEPTH)) == FANOUT**DEPTH

    yield "single client tasks sync", sync(small_value)
    yield "single client tasks async", pipelined(small_value, 1000)
    yield "tasks, burst of 10k", pipelined(small_value, BURST)
    actor = Actor.remote()
    yield "1:1 actor calls sync", sync(actor.small_value)
    yield "1:1 actor calls async", pipelined(actor.small_value, 1000)
    async_actor = AsyncActor.remote()
    yield "1:1 async-actor calls sync", sync(async_actor.small_value)
    yield "1:1 async-actor calls async", pipelined(async_actor.small_value, 1000)
    del actor, async_actor
    yield "single client wait 1k refs", lambda: timer.calls(wait_1k_refs)
    yield "wait for one of 10k refs", wait_one_of_10k_refs
    yield "wait for one of 10k values, same list", wait_for_a_value
    yield "tree of tasks, 3 deep, fan-out 4", lambda: timer.calls(nested)
    yield (
        "tasks of a task, 1k",
        lambda: [api.get(starts_many.remote(1000)) for _ in range(22)][2:],
    )


def _objects(api: Api, timer: Timer) -> Iterator[Named]:
    large = np.ones(100 * MB // 8)  # float64, pages touched

    @api.remote
    def eight_megabytes() -> np.ndarray:
        return np.ones(MB)

    @api.remote
    def object_with_refs() -> list[Any]:
        return [api.put(1) for _ in range(BURST)]

    def get_100_mb() -> Samples:
        took = []
        for _ in range(10):
            ref = api.put(large)
            start = time.perf_counter()
            value = api.get(ref)
            took.append(time.perf_counter() - start)
            del value, ref
        return took

    value = api.put(0)
    yield (
        "single client get calls (Plasma Store)",
        lambda: timer.calls(lambda: api.get(value)),
    )
    yield (
        "single client put calls (Plasma Store)",
        lambda: timer.calls(lambda: api.put(0)),
    )
    yield "put 100 MB", lambda: timer.calls(lambda: api.put(large))
    yield "get 100 MB", get_100_mb
    yield (
        "task returning 8 MB",
        lambda: timer.calls(lambda: api.get(eight_megabytes.remote())),
    )
    refs = object_with_refs.remote()
    yield (
        "single client get object containing 10k refs",
        lambda: timer.calls(lambda: api.get(refs)),
    )
