"""Streaming generators: items are usable while the generator still runs."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
from helpers import Counter, Signal, identity, wait_for
from polling import wait_until

import skate
from skate.exceptions import ActorDiedError, GetTimeoutError, TaskError

pytestmark = [pytest.mark.usefixtures("engine"), pytest.mark.core]


@skate.remote
def count(n: int) -> Iterator[int]:
    yield from range(n)


@skate.remote
class Source:
    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    @skate.method(num_returns=2)
    def pair(self) -> Iterator[int]:
        yield from (1, 2)

    def not_a_generator(self) -> int:
        return 1


@skate.remote
class AsyncSource:
    async def count(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            await asyncio.sleep(0)
            yield i

    def count_plainly(self, n: int) -> Iterator[int]:
        yield from range(n)

    async def ping(self) -> str:
        return "pong"


class Noted:
    """Generators that tell a counter how far they have come."""

    @staticmethod
    @skate.remote
    def count(n: int, counter: Any, ended: Any = None) -> Iterator[int]:
        try:
            for i in range(n):
                skate.get(counter.add.remote())
                yield i
        finally:
            if ended is not None:
                skate.get(ended.set.remote())


def test_a_generator_gives_the_refs_of_its_items() -> None:
    stream = count.remote(5)
    assert isinstance(stream, skate.ObjectRefGenerator)
    assert [skate.get(ref) for ref in stream] == [0, 1, 2, 3, 4]
    with pytest.raises(StopIteration):
        next(stream)
    assert stream.is_finished()
    assert skate.get(stream.completed()) is None


@pytest.mark.parametrize("kind", ["streaming", "dynamic"])
def test_streaming_can_be_asked_for(kind: str) -> None:
    stream: Any = count.options(num_returns=kind).remote(3)
    assert [skate.get(ref) for ref in skate.get(stream)] == [0, 1, 2]


def test_a_generator_with_a_number_of_returns_is_no_stream() -> None:
    refs: Any = count.options(num_returns=3).remote(3)
    assert skate.get(refs) == [0, 1, 2]


def test_an_empty_stream_ends_at_once() -> None:
    assert list(count.remote(0)) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_a_method_of_an_actor_streams(threads: int) -> None:
    source = Source.options(max_concurrency=threads).remote()
    assert [skate.get(ref) for ref in source.count.remote(4)] == [0, 1, 2, 3]
    assert skate.get(source.pair.remote()) == [1, 2]


@pytest.mark.parametrize("method", ["count", "count_plainly"])
@pytest.mark.parametrize("window", [-1, 1, 3])
def test_a_method_of_an_async_actor_streams(method: str, window: int) -> None:
    source = AsyncSource.remote()
    call = getattr(source, method)
    stream = call.options(_generator_backpressure_num_objects=window).remote(20)
    first = skate.get(next(stream))
    # It does not keep the actor's loop to itself.
    assert skate.get(source.ping.remote()) == "pong"
    assert [first, *map(skate.get, stream)] == list(range(20))


def test_an_item_can_be_used_before_the_generator_has_ended() -> None:
    @skate.remote
    def two(signal: Any) -> Iterator[str]:
        yield "early"
        skate.get(signal.wait.remote())
        yield "late"

    signal = Signal.remote()
    stream = two.remote(signal)
    assert skate.get(identity.remote(next(stream))) == "early"
    assert not stream.is_finished()
    assert not stream.next_ready()
    signal.set.remote()
    assert skate.get(next(stream)) == "late"


def test_large_items_come_as_they_were_made() -> None:
    @skate.remote
    def arrays() -> Iterator[np.ndarray]:
        for i in range(5):
            yield np.full(100_000, i)

    for i, ref in enumerate(arrays.remote()):
        value = skate.get(ref)
        assert (value == i).all()
        assert not value.flags.writeable


def test_refs_among_the_items_keep_their_values() -> None:
    @skate.remote
    def refs() -> Iterator[list[Any]]:
        for i in range(3):
            yield [skate.put(i), identity.remote(i)]

    outer = [skate.get(ref) for ref in refs.remote()]
    assert [skate.get(inner) for inner in outer] == [[0, 0], [1, 1], [2, 2]]


def test_back_pressure_keeps_the_generator_from_running_ahead() -> None:
    counter = Counter.remote()
    stream = Noted.count.options(_generator_backpressure_num_objects=2).remote(
        10, counter
    )
    assert wait_until(lambda: skate.get(counter.get.remote()) == 2)
    for i in range(8):
        assert skate.get(next(stream)) == i
        assert wait_until(lambda i=i: skate.get(counter.get.remote()) == i + 3)
    assert [skate.get(ref) for ref in stream] == [8, 9]


def test_without_back_pressure_it_runs_to_its_end() -> None:
    counter, ended = Counter.remote(), Signal.remote()
    stream = Noted.count.remote(10, counter, ended)
    skate.get(stream.completed())
    assert skate.get(counter.get.remote()) == 10
    assert [skate.get(ref) for ref in stream] == list(range(10))


@pytest.mark.differs(ray="keeps its CPU while it waits to be read")
def test_a_producer_that_waits_gives_its_cpu_back() -> None:
    streams = [
        count.options(_generator_backpressure_num_objects=1).remote(3) for _ in range(5)
    ]
    firsts = [skate.get(next(stream)) for stream in streams]
    assert firsts == [0] * 5
    assert skate.get(identity.remote(7)) == 7
    assert [[skate.get(r) for r in stream] for stream in streams] == [[1, 2]] * 5


@skate.remote
def breaks(n: int) -> Iterator[int]:
    yield from range(n)
    raise ValueError("in the middle")


def test_an_error_comes_as_the_next_item_and_then_the_stream_ends() -> None:
    stream = breaks.remote(2)
    assert [skate.get(next(stream)), skate.get(next(stream))] == [0, 1]
    failed = next(stream)
    with pytest.raises(ValueError, match="in the middle"):
        skate.get(failed)
    with pytest.raises(StopIteration):
        next(stream)
    assert stream.is_finished()
    with pytest.raises(TaskError, match="in the middle"):
        skate.get(stream.completed())


def test_an_item_that_cannot_be_pickled_is_an_error() -> None:
    @skate.remote
    def unpicklable() -> Iterator[Any]:
        yield 1
        yield (i for i in range(3))

    stream = unpicklable.remote()
    assert skate.get(next(stream)) == 1
    with pytest.raises(TypeError, match="cannot pickle"):
        skate.get(next(stream))
    with pytest.raises(StopIteration):
        next(stream)
    assert stream.is_finished()


def test_an_argument_that_failed_is_the_only_item() -> None:
    @skate.remote
    def fails() -> int:
        raise KeyError("argument")

    stream = count.remote(fails.remote())
    with pytest.raises(KeyError):
        skate.get(next(stream))
    assert list(stream) == []


def test_the_error_of_an_async_generator_comes_as_an_item() -> None:
    @skate.remote
    class Failing:
        async def run(self) -> AsyncIterator[int]:
            yield 1
            raise ValueError("async")

    first, second = Failing.remote().run.remote()
    assert skate.get(first) == 1
    with pytest.raises(ValueError, match="async"):
        skate.get(second)


def test_a_failed_generator_is_run_again_and_repeats_no_item() -> None:
    @skate.remote(retry_exceptions=[ValueError], max_retries=2)
    def flaky(counter: Any) -> Iterator[int]:
        attempt = skate.get(counter.add.remote())
        for i in range(5):
            if i == attempt:
                raise ValueError("again")
            yield i

    counter = Counter.remote()
    stream = flaky.remote(counter)
    assert [skate.get(next(stream)) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="again"):
        skate.get(next(stream))
    assert list(stream) == []
    assert skate.get(counter.get.remote()) == 3


def test_next_ready_tells_whether_next_would_wait() -> None:
    signal = Signal.remote()

    @skate.remote
    def after(signal: Any) -> Iterator[int]:
        skate.get(signal.wait.remote())
        yield 1

    stream = after.remote(signal)
    assert not stream.next_ready()
    signal.set.remote()
    assert wait_until(stream.next_ready)
    assert not stream.is_finished()
    assert skate.get(next(stream)) == 1
    skate.get(stream.completed())
    assert not stream.next_ready()
    assert stream.is_finished()


def test_a_stream_is_waited_for_like_a_ref() -> None:
    signal = Signal.remote()

    @skate.remote
    def after(signal: Any) -> Iterator[int]:
        skate.get(signal.wait.remote())
        yield 1

    late, early = after.remote(signal), count.remote(1)
    ref = wait_for.remote(signal, 5)
    ready, others = skate.wait([late, early, ref], timeout=30)
    assert (ready, others) == ([early], [late, ref])
    assert skate.wait([late, ref], timeout=0.01) == ([], [late, ref])
    signal.set.remote()
    assert skate.wait([late, ref], num_returns=2, timeout=30) == ([late, ref], [])
    assert skate.get(next(late)) == 1
    # An end is something to wait for, too.
    next(early)
    assert skate.wait([early], timeout=30) == ([early], [])
    with pytest.raises(ValueError, match="twice"):
        skate.wait([late, late])


def test_a_stream_is_iterated_in_a_coroutine() -> None:
    async def read() -> list[int]:
        return [await ref async for ref in count.remote(5)]

    async def read_both() -> list[list[int]]:
        return list(await asyncio.gather(read(), read()))

    assert asyncio.run(read()) == [0, 1, 2, 3, 4]
    assert asyncio.run(read_both()) == [[0, 1, 2, 3, 4]] * 2


def test_an_async_actor_reads_a_stream() -> None:
    @skate.remote
    class Reader:
        async def total(self, n: int) -> int:
            return sum([await ref async for ref in count.remote(n)])

    assert skate.get(Reader.remote().total.remote(10)) == 45


@skate.remote(num_cpus=0)
def count_once_set(signal: Any, n: int) -> Iterator[int]:
    skate.get(signal.wait.remote())
    yield from range(n)


def test_an_async_actor_waits_for_items_and_may_give_up_a_wait() -> None:
    @skate.remote(num_cpus=0)
    class Reader:
        async def read(self, signal: Any) -> list[int]:
            stream = count_once_set.remote(signal, 3)
            for _ in range(2):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(anext(stream), 0.01)
            late = asyncio.ensure_future(anext(stream))
            await signal.set.remote()
            return [await ref for ref in [await late, *[ref async for ref in stream]]]

    assert skate.get(Reader.remote().read.remote(Signal.remote()), timeout=60) == [
        0,
        1,
        2,
    ]


def test_a_task_reads_a_stream_of_its_own() -> None:
    @skate.remote
    def total(n: int) -> int:
        return sum(skate.get(ref) for ref in count.remote(n))

    assert skate.get([total.remote(5), total.remote(6)]) == [10, 15]


@pytest.mark.parametrize("end", ["drop", "close"])
def test_a_producer_stops_when_nobody_reads_any_more(end: str) -> None:
    counter, ended = Counter.remote(), Signal.remote()
    stream = Noted.count.options(_generator_backpressure_num_objects=1).remote(
        1_000_000, counter, ended
    )
    assert skate.get(next(stream)) == 0
    if end == "close":
        stream.close()
        assert list(stream) == []
        stream.close()
    del stream
    gc.collect()
    skate.get(ended.wait.remote(), timeout=30)
    assert skate.get(counter.get.remote()) <= 3


def test_a_producer_that_does_not_wait_stops_too() -> None:
    ended = Signal.remote()

    @skate.remote
    def endless(ended: Any) -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            skate.get(ended.set.remote())

    stream = endless.remote(ended)
    assert skate.get(next(stream)) == 1
    stream.close()
    skate.get(ended.wait.remote(), timeout=30)


def test_an_async_producer_stops_too() -> None:
    ended = Signal.remote()

    @skate.remote
    class Endless:
        async def run(self, ended: Any) -> AsyncIterator[int]:
            try:
                while True:
                    yield 1
            finally:
                await ended.set.remote()

    actor = Endless.remote()
    stream = actor.run.options(_generator_backpressure_num_objects=1).remote(ended)
    assert skate.get(next(stream)) == 1
    del stream
    gc.collect()
    skate.get(ended.wait.remote(), timeout=30)


def test_items_that_were_not_read_are_dropped_with_the_stream(
    baseline: Callable[[], bool],
) -> None:
    @skate.remote
    def arrays() -> Iterator[np.ndarray]:
        for _ in range(5):
            yield np.zeros(50_000)

    stream = arrays.remote()
    skate.get(stream.completed())
    ref = next(stream)
    stream.close()
    assert skate.get(ref).sum() == 0
    del ref, stream
    assert baseline()


def test_items_outlive_their_stream_and_its_actor() -> None:
    source = Source.remote()
    refs = list(source.count.remote(3))
    skate.kill(source)
    assert skate.get(refs) == [0, 1, 2]


def test_a_killed_actor_ends_its_streams_with_an_error() -> None:
    source = AsyncSource.remote()
    stream = source.count.options(_generator_backpressure_num_objects=1).remote(10)
    assert skate.get(next(stream)) == 0
    skate.kill(source)
    with pytest.raises(ActorDiedError):
        skate.get(list(stream))
    assert stream.is_finished()


def test_a_stream_cannot_be_passed_on() -> None:
    stream = count.remote(1)
    with pytest.raises(TypeError, match="cannot be passed to a task"):
        identity.remote(stream)
    with pytest.raises(TypeError, match="cannot be passed to a task"):
        skate.put([stream])


def test_what_python_sends_into_generators_is_refused() -> None:
    stream = count.remote(1)
    with pytest.raises(NotImplementedError):
        stream.send(1)
    with pytest.raises(NotImplementedError, match=r"skate\.cancel"):
        stream.throw(ValueError)


def test_what_is_no_generator_cannot_stream() -> None:
    with pytest.raises(ValueError, match="has no 'yield'"):
        identity.options(num_returns="streaming")
    stream: Any = (
        Source.remote().not_a_generator.options(num_returns="streaming").remote()
    )
    with pytest.raises(TypeError, match="must be a generator; it returned int"):
        skate.get(next(stream))


def test_a_stream_of_a_long_wait_does_not_hang_a_get_with_a_timeout() -> None:
    signal = Signal.remote()

    @skate.remote
    def after(signal: Any) -> Iterator[int]:
        skate.get(signal.wait.remote())
        yield 1

    stream = after.remote(signal)
    with pytest.raises(GetTimeoutError):
        skate.get(stream.completed(), timeout=0.05)
    signal.set.remote()
    assert [skate.get(ref) for ref in stream] == [1]
