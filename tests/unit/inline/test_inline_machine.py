"""Random programs with random cancels, kills and drops: all ends, nothing is left."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from polling import wait_until

import skate
from skate._runtime import statistics
from skate.exceptions import DeadlockError, GetTimeoutError, SkateError
from skate.util import placement_group, remove_placement_group
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy

# Actors do not take CPUs: one that lives would keep the tasks of another waiting.
SLOTS = 100
PLACE = {"num_cpus": 0, "resources": {"slot": 1}}


@skate.remote(num_cpus=0)
class Gate:
    def __init__(self) -> None:
        self.event = asyncio.Event()

    async def wait(self) -> None:
        await self.event.wait()

    async def open(self) -> None:
        self.event.set()


@skate.remote(max_retries=2, retry_exceptions=True)
def join(*_: Any) -> int:
    return 1


@skate.remote
def fail() -> None:
    raise ValueError


@skate.remote
def nest(depth: int) -> int:
    return 1 + skate.get(nest.remote(depth - 1)) if depth else 0


@skate.remote
def block(ref: list[Any]) -> None:
    skate.get(ref[0])


@skate.remote(num_returns="streaming")
def count(n: int, ref: list[Any]) -> Iterator[int]:
    for i in range(n):
        skate.wait(ref, timeout=0)
        yield i


@skate.remote(**PLACE, max_restarts=1, max_task_retries=1)
class Plain:
    def give(self, _: Any) -> int:
        return 1

    def block(self, ref: list[Any]) -> None:
        skate.get(ref[0])

    def count(self, n: int) -> Iterator[int]:
        yield from range(n)


@skate.remote(**PLACE, max_restarts=1)
class Async:
    async def give(self, _: Any) -> int:
        return 1

    async def block(self, ref: list[Any]) -> None:
        stream = count.remote(2, ref)
        first = asyncio.ensure_future(anext(stream))
        await asyncio.wait([first], timeout=0)
        first.cancel()
        await ref[0]

    async def count(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i


KINDS = [
    Plain,
    Async,
    Plain.options(max_concurrency=2),
    Plain.options(max_restarts=0),
    Async.options(max_task_retries=1),
]
which = st.integers(0, 99)


class Programs(RuleBasedStateMachine):
    """One session for each program; choices are indices into what there is."""

    def __init__(self) -> None:
        super().__init__()
        skate.init("inline", num_cpus=2, resources={"slot": SLOTS})
        self.gate = Gate.remote()
        self.refs: list[Any] = [self.gate.wait.remote()]
        self.actors: list[Any] = []
        self.streams: list[Any] = []
        self.groups: list[Any] = []

    def ref(self, index: int) -> Any:
        return self.refs[index % len(self.refs)]

    def actor(self, index: int) -> Any:
        return self.actors[index % len(self.actors)]

    @rule(first=which, second=which)
    def call(self, first: int, second: int) -> None:
        self.refs.append(join.remote(self.ref(first), self.ref(second)))

    @rule(depth=st.integers(0, 3))
    def call_in_calls(self, depth: int) -> None:
        self.refs.append(nest.remote(depth))

    @rule()
    def call_what_fails(self) -> None:
        self.refs.append(fail.remote())

    @rule(index=which)
    def call_what_blocks(self, index: int) -> None:
        self.refs.append(block.remote([self.ref(index)]))

    @precondition(lambda self: len(self.actors) < 4)
    @rule(kind=st.sampled_from(KINDS))
    def make_actor(self, kind: Any) -> None:
        self.actors.append(kind.remote())

    @precondition(lambda self: self.actors)
    @rule(actor=which, index=which, blocks=st.booleans())
    def call_actor(self, actor: int, index: int, blocks: bool) -> None:
        callee, ref = self.actor(actor), self.ref(index)
        call = callee.block.remote([ref]) if blocks else callee.give.remote(ref)
        self.refs.append(call)

    @precondition(lambda self: self.actors)
    @rule(actor=which, window=st.sampled_from([-1, 1]), kept=st.booleans())
    def stream(self, actor: int, window: int, kept: bool) -> None:
        method = self.actor(actor).count.options(
            num_returns="streaming", _generator_backpressure_num_objects=window
        )
        stream = method.remote(3)
        if kept:
            self.streams.append(stream)

    @rule(index=which)
    def call_in_a_group(self, index: int) -> None:
        group = placement_group([{"slot": 1}])
        where = PlacementGroupSchedulingStrategy(group)
        options = {"num_cpus": 0, "resources": {"slot": 1}}
        placed = block.options(scheduling_strategy=where, **options)
        self.refs.append(placed.remote([self.ref(index)]))
        self.groups.append(group)

    @precondition(lambda self: self.groups)
    @rule()
    def remove_group(self) -> None:
        remove_placement_group(self.groups.pop())

    @rule(index=which, recursive=st.booleans())
    def cancel(self, index: int, recursive: bool) -> None:
        skate.cancel(self.ref(index), recursive=recursive)

    @precondition(lambda self: self.actors)
    @rule(actor=which, no_restart=st.booleans())
    def kill(self, actor: int, no_restart: bool) -> None:
        skate.kill(self.actor(actor), no_restart=no_restart)

    @precondition(lambda self: self.actors)
    @rule(actor=which)
    def drop_actor(self, actor: int) -> None:
        del self.actors[actor % len(self.actors)]

    @precondition(lambda self: self.streams)
    @rule()
    def drop_stream(self) -> None:
        self.streams.pop()

    @rule(index=which)
    def let_others_run(self, index: int) -> None:
        skate.wait([self.ref(index)], timeout=0)

    def teardown(self) -> None:
        try:
            self.end()
        finally:
            skate.shutdown()

    def end(self) -> None:
        self.gate.open.remote()
        self.actors.clear()
        for stream in self.streams:  # first: other calls of their actors wait
            for ref in stream:
                ends(ref)
        for ref in self.refs:
            ends(ref)
        while self.groups:
            remove_placement_group(self.groups.pop())
        del self.gate
        self.refs.clear()
        self.streams.clear()
        stream = ref = None
        gc.collect()

        def nothing_is_left() -> bool:
            free = skate.available_resources()
            return (free["CPU"], free["slot"]) == (2, SLOTS) and not statistics()[
                "objects"
            ]

        assert wait_until(nothing_is_left, 5), (
            skate.available_resources(),
            statistics(),
        )


def ends(ref: Any) -> None:
    """With a value or an error, but not because it never could."""
    try:
        skate.get(ref, timeout=20)
    except (GetTimeoutError, DeadlockError):
        raise
    except (SkateError, ValueError):
        pass


TestPrograms = Programs.TestCase
TestPrograms.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
