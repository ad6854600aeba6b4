"""``skate.cancel``: what has not started never does, what runs is interrupted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from helpers import Counter, Signal, add, identity, wait_for
from polling import wait_until

import skate
from skate.exceptions import TaskCancelledError, WorkerCrashedError

pytestmark = pytest.mark.usefixtures("engine")


@skate.remote(num_cpus=0)
def block(signal: Any, started: Any = None) -> str:
    """Waits in skate, which every engine can interrupt."""
    if started is not None:
        skate.get(started.set.remote())
    skate.get(signal.wait.remote())
    return "done"


def assert_cancelled(ref: Any, kind: type[Exception] = TaskCancelledError) -> None:
    with pytest.raises(kind):
        skate.get(ref, timeout=30)


def test_a_running_task_is_interrupted() -> None:
    signal, started = Signal.remote(), Signal.remote()
    ref = block.remote(signal, started)
    skate.get(started.wait.remote())
    skate.cancel(ref)
    assert_cancelled(ref)
    assert skate.get(identity.remote(1)) == 1


@pytest.mark.differs(ray="what it waits for, and calls to clean up, are cancelled, too")
def test_the_task_sees_a_keyboard_interrupt_and_may_clean_up() -> None:
    @skate.remote
    def careful(signal: Any, started: Any, counter: Any) -> None:
        try:
            skate.get(started.set.remote())
            skate.get(signal.wait.remote())
        except KeyboardInterrupt:
            skate.get(counter.add.remote(10))
            raise

    signal, started, counter = Signal.remote(), Signal.remote(), Counter.remote()
    ref = careful.remote(signal, started, counter)
    skate.get(started.wait.remote())
    skate.cancel(ref)
    assert_cancelled(ref)
    assert skate.get(counter.get.remote()) == 10


@pytest.mark.differs(ray="may see the TaskCancelledError of what it waits for instead")
def test_a_task_that_catches_the_interrupt_returns_what_it_likes() -> None:
    @skate.remote
    def stubborn(signal: Any, started: Any) -> str:
        try:
            skate.get(started.set.remote())
            skate.get(signal.wait.remote())
        except KeyboardInterrupt:
            return "kept"
        return "not interrupted"

    signal, started = Signal.remote(), Signal.remote()
    ref = stubborn.remote(signal, started)
    skate.get(started.wait.remote())
    skate.cancel(ref)
    assert skate.get(ref) == "kept"


def test_a_task_that_waits_for_an_argument_never_starts() -> None:
    signal, counter = Signal.remote(), Counter.remote()

    @skate.remote
    def note(counter: Any, _: Any) -> None:
        skate.get(counter.add.remote())

    argument = wait_for.remote(signal, 1)
    ref = note.remote(counter, argument)
    after = add.remote(ref, 1)
    skate.cancel(ref)
    assert_cancelled(ref)
    assert_cancelled(after)  # like any error of an argument
    signal.set.remote()
    assert skate.get(argument) == 1
    assert skate.get(counter.get.remote()) == 0


def test_a_task_that_waits_for_a_cpu_never_starts() -> None:
    signal, counter = Signal.remote(), Counter.remote()

    @skate.remote(num_cpus=2)
    def hold(signal: Any) -> None:
        pass

    @skate.remote
    def note(counter: Any) -> None:
        skate.get(counter.add.remote())

    refs = [note.remote(counter) for _ in range(50)]
    for ref in refs:
        skate.cancel(ref)
    done = 0
    for ref in refs:
        try:
            skate.get(ref)
            done += 1
        except TaskCancelledError:
            pass
    # Some may have run before; none that was cancelled ran to its end.
    assert skate.get(counter.get.remote()) >= done
    assert skate.get([note.remote(counter) for _ in range(5)]) == [None] * 5
    assert skate.get(hold.remote(signal)) is None


def test_a_task_that_waits_for_a_resource_never_starts(start: Any) -> None:
    @skate.remote(resources={"token": 4})
    class Holder:
        def ping(self) -> None: ...

    @skate.remote(resources={"token": 4}, num_cpus=0)
    def wants(counter: Any) -> None:
        skate.get(counter.add.remote())

    skate.shutdown()
    start(num_cpus=2, resources={"token": 4})
    holder, counter = Holder.remote(), Counter.remote()
    skate.get(holder.ping.remote())
    ref = wants.remote(counter)
    skate.cancel(ref)
    assert_cancelled(ref)
    del holder
    skate.get(wants.remote(counter))
    assert skate.get(counter.get.remote()) == 1


def test_all_refs_of_a_task_are_cancelled() -> None:
    signal, started = Signal.remote(), Signal.remote()
    refs: Any = block.options(num_returns=2).remote(signal, started)
    skate.get(started.wait.remote())
    skate.cancel(refs[1])
    for ref in refs:
        assert_cancelled(ref)


def test_cancelling_what_has_ended_does_nothing() -> None:
    ref = identity.remote(5)
    assert skate.get(ref) == 5
    skate.cancel(ref)
    skate.cancel(ref, force=True)
    skate.cancel(skate.put(1))
    assert skate.get(ref) == 5


def test_cancelling_twice_is_cancelling_once() -> None:
    signal, started = Signal.remote(), Signal.remote()
    ref = block.remote(signal, started)
    skate.get(started.wait.remote())
    skate.cancel(ref)
    skate.cancel(ref)
    assert_cancelled(ref)
    skate.cancel(ref)
    assert skate.get(identity.remote(1)) == 1


def test_what_a_task_started_is_cancelled_with_it() -> None:
    @skate.remote(num_cpus=0)
    def parent(signal: Any, started: Any, refs: Any) -> None:
        children = [block.remote(signal, started) for _ in range(2)]
        skate.get(refs.keep.remote(children))
        skate.get(children)

    signal, started, refs = Signal.remote(), Signal.remote(), Keeper.remote()
    ref = parent.remote(signal, started, refs)
    skate.get(started.wait.remote())
    assert wait_until(lambda: skate.get(refs.get.remote()) is not None)
    children = skate.get(refs.get.remote())
    skate.cancel(ref)
    assert_cancelled(ref)
    for child in children:
        assert_cancelled(child)
    skate.get(refs.keep.remote(None))


@pytest.mark.differs(
    ray="a cancel is a message: a task that ends meanwhile keeps its value"
)
def test_without_recursive_its_children_go_on() -> None:
    @skate.remote(num_cpus=0)
    def parent(signal: Any, started: Any, refs: Any) -> None:
        child = block.remote(signal, started)
        skate.get(refs.keep.remote([child]))
        skate.get(child)

    signal, started, refs = Signal.remote(), Signal.remote(), Keeper.remote()
    ref = parent.remote(signal, started, refs)
    skate.get(started.wait.remote())
    assert wait_until(lambda: skate.get(refs.get.remote()) is not None)
    [child] = skate.get(refs.get.remote())
    skate.cancel(ref, recursive=False)
    signal.set.remote()
    assert skate.get(child) == "done"
    assert_cancelled(ref)
    skate.get(refs.keep.remote(None))


def test_an_actor_that_a_cancelled_task_has_created_is_constructed() -> None:
    @skate.remote
    class Late:
        def __init__(self, word: str) -> None:
            self.word = word

        def get(self) -> str:
            return self.word

    @skate.remote(num_cpus=0)
    def parent(words: list[Any], refs: Any) -> None:
        late = Late.remote(words[0])
        skate.get(refs.keep.remote([late]))
        skate.get(words)

    signal, refs = Signal.remote(), Keeper.remote()
    word = block.remote(signal)
    ref = parent.remote([word], refs)
    assert wait_until(lambda: skate.get(refs.get.remote()) is not None)
    [late] = skate.get(refs.get.remote())
    skate.cancel(ref)  # while the constructor waits for its argument
    assert_cancelled(ref)
    signal.set.remote()
    assert skate.get(late.get.remote(), timeout=30) == "done"
    skate.get(refs.keep.remote(None))


@skate.remote
class Keeper:
    def __init__(self) -> None:
        self.kept: Any = None

    def keep(self, value: Any) -> None:
        self.kept = value

    def get(self) -> Any:
        return self.kept


def test_a_task_cancels_what_it_was_given() -> None:
    @skate.remote
    def cancel(refs: list[Any]) -> None:
        skate.cancel(refs[0])

    signal, started = Signal.remote(), Signal.remote()
    ref = block.remote(signal, started)
    skate.get(started.wait.remote())
    skate.get(cancel.remote([ref]))
    assert_cancelled(ref)


def test_a_cancelled_task_is_not_tried_again() -> None:
    @skate.remote(retry_exceptions=True, max_retries=-1)
    def noted(counter: Any, signal: Any, started: Any) -> None:
        skate.get(counter.add.remote())
        skate.get(started.set.remote())
        skate.get(signal.wait.remote())

    counter, signal, started = Counter.remote(), Signal.remote(), Signal.remote()
    ref = noted.remote(counter, signal, started)
    skate.get(started.wait.remote())
    skate.cancel(ref)
    assert_cancelled(ref)
    assert skate.get(counter.get.remote()) == 1


def test_force_ends_a_task_that_does_not_listen(engine: str) -> None:
    if engine == "inline":
        pytest.skip("there is one process, which force would end")

    @skate.remote
    def deaf(started: Any) -> None:
        while True:
            try:
                skate.get(started.set.remote())
                time.sleep(10)
            except (KeyboardInterrupt, TaskCancelledError):
                continue

    started = Signal.remote()
    ref = deaf.remote(started)
    skate.get(started.wait.remote())
    skate.cancel(ref)
    assert skate.wait([ref], timeout=0.2) == ([], [ref])
    skate.cancel(ref, force=True)
    assert_cancelled(ref)
    assert_cancelled(ref, WorkerCrashedError)  # as Ray says, too
    assert skate.get(identity.remote(1)) == 1


@pytest.mark.differs(
    ray="is interrupted between lines of Python: a sleep goes on to its end"
)
def test_a_task_that_sleeps_is_interrupted(engine: str) -> None:
    if engine == "inline":
        pytest.skip("nothing else runs while a task sleeps outside of skate")

    @skate.remote
    def sleep(started: Any) -> None:
        skate.get(started.set.remote())
        time.sleep(100)

    @skate.remote
    def spin(started: Any) -> None:
        skate.get(started.set.remote())
        while True:
            pass

    for task in (sleep, spin):
        started = Signal.remote()
        ref = task.remote(started)
        skate.get(started.wait.remote())
        skate.cancel(ref)
        assert_cancelled(ref)


def test_no_interrupt_hits_another_task(engine: str) -> None:
    """Cancelling at every moment of a short task harms no other."""
    if engine == "inline":
        pytest.skip("one thing runs at a time")

    @skate.remote
    def short(n: int) -> int:
        return sum(range(n))

    expected = sum(range(300))
    cancelled = 0
    for _ in range(300):
        victim, other = short.remote(300), short.remote(300)
        skate.cancel(victim)
        assert skate.get(other) == expected
        try:
            assert skate.get(victim) == expected
        except TaskCancelledError:
            cancelled += 1
    assert skate.get([short.remote(300) for _ in range(100)]) == [expected] * 100


# Actors -----------------------------------------------------------------------------


@skate.remote
class Plain:
    def block(self, signal: Any, started: Any) -> bool:
        skate.get(started.set.remote())
        skate.get(signal.wait.remote())
        return skate.get_runtime_context().is_canceled()

    def is_cancelled(self) -> bool:
        return skate.get_runtime_context().is_canceled()

    def items(self, counter: Any) -> Iterator[int]:
        while True:
            skate.get(counter.add.remote())
            yield 1


@skate.remote
class Async:
    def __init__(self) -> None:
        self.seen = ""

    async def block(self, started: Any) -> str:
        try:
            await started.set.remote()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.seen = "cancelled"
            raise
        return "never"

    async def items(self, started: Any) -> AsyncIterator[int]:
        yield 1
        await started.set.remote()
        await asyncio.Event().wait()

    async def what_was_seen(self) -> str:
        return self.seen

    async def ask(self) -> bool:
        return skate.get_runtime_context().is_canceled()


@pytest.mark.differs(ray="get raises TaskCancelledError, whatever the call returns")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_running_call_of_an_actor_can_see_that_it_is_cancelled(threads: int) -> None:
    actor = Plain.options(max_concurrency=threads).remote()
    signal, started = Signal.remote(), Signal.remote()
    ref = actor.block.remote(signal, started)
    skate.get(started.wait.remote())
    skate.cancel(ref, recursive=False)
    signal.set.remote()
    assert skate.get(ref) is True
    assert skate.get(actor.is_cancelled.remote()) is False


@pytest.mark.differs(ray="get raises TaskCancelledError, whatever the call returns")
def test_a_call_that_runs_again_can_see_that_it_is_cancelled() -> None:
    actor = Plain.options(max_restarts=1, max_task_retries=1).remote()
    signal = Signal.remote()
    ref = actor.block.remote(signal, Signal.remote())
    skate.get(signal.wait_for_waiting.remote(1))
    skate.kill(actor, no_restart=False)
    skate.get(signal.wait_for_waiting.remote(2))
    skate.cancel(ref, recursive=False)
    signal.set.remote()
    assert skate.get(ref) is True


def test_a_cancelled_call_does_not_run_again_after_a_restart() -> None:
    actor = Plain.options(max_restarts=1, max_task_retries=1).remote()
    signal = Signal.remote()
    ref = actor.block.remote(signal, Signal.remote())
    skate.get(signal.wait_for_waiting.remote(1))
    skate.cancel(ref, recursive=False)
    skate.kill(actor, no_restart=False)
    assert_cancelled(ref)
    assert skate.get(actor.is_cancelled.remote()) is False
    assert skate.get(signal.waiting.remote()) == 1
    signal.set.remote()


@pytest.mark.differs(ray="TaskCancelledError comes when its turn would")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_call_that_waits_for_the_actor_never_starts(threads: int) -> None:
    actor = Plain.options(max_concurrency=threads).remote()
    signal = Signal.remote()
    starts = [Signal.remote() for _ in range(threads)]
    running = [actor.block.remote(signal, started) for started in starts]
    skate.get([started.wait.remote() for started in starts])
    never = Signal.remote()
    waiting = actor.block.remote(signal, never)
    skate.cancel(waiting)
    assert_cancelled(waiting)
    signal.set.remote()
    assert skate.get(running) == [False] * threads
    assert skate.get(actor.is_cancelled.remote()) is False
    assert skate.get(never.waiting.remote()) == 0


def test_a_call_that_waits_for_an_argument_lets_later_ones_pass() -> None:
    actor, signal = Counter.remote(), Signal.remote()
    first = actor.add.remote(wait_for.remote(signal, 10))
    second = actor.add.remote(1)
    skate.cancel(first)
    assert_cancelled(first)
    assert skate.get(second) == 1
    signal.set.remote()


def test_a_running_coroutine_is_cancelled_as_asyncio_does() -> None:
    actor, started = Async.remote(), Signal.remote()
    ref = actor.block.remote(started)
    skate.get(started.wait.remote())
    skate.cancel(ref)
    assert_cancelled(ref)
    assert skate.get(actor.what_was_seen.remote()) == "cancelled"


@pytest.mark.differs(ray="TaskCancelledError comes when its turn would")
def test_a_coroutine_that_waits_for_its_turn_never_starts() -> None:
    actor = Async.options(max_concurrency=1).remote()
    started, never = Signal.remote(), Signal.remote()
    running = actor.block.remote(started)
    skate.get(started.wait.remote())
    waiting = actor.block.remote(never)
    skate.cancel(waiting)
    assert_cancelled(waiting)
    skate.cancel(running)
    assert_cancelled(running)
    assert skate.get(actor.what_was_seen.remote()) == "cancelled"


def test_coroutines_cannot_ask_whether_they_are_cancelled() -> None:
    with pytest.raises(RuntimeError, match="CancelledError"):
        skate.get(Async.remote().ask.remote())


def test_force_is_not_for_actors() -> None:
    actor, signal, started = Plain.remote(), Signal.remote(), Signal.remote()
    ref = actor.block.remote(signal, started)
    with pytest.raises(ValueError, match=r"skate\.kill"):
        skate.cancel(ref, force=True)
    signal.set.remote()
    assert skate.get(ref) is False


def test_force_is_not_for_actors_whoever_asks() -> None:
    @skate.remote
    def cancel(boxed: list[Any]) -> str:
        try:
            skate.cancel(boxed[0], force=True)
        except ValueError as error:
            return str(error)
        return "it was not refused"

    actor, signal, started = Plain.remote(), Signal.remote(), Signal.remote()
    ref = actor.block.remote(signal, started)
    assert "skate.kill" in skate.get(cancel.remote([ref]))
    signal.set.remote()
    assert skate.get(ref) is False


def test_what_an_actor_is_doing_for_a_cancelled_task_is_cancelled() -> None:
    @skate.remote
    def parent(actor: Any, started: Any) -> None:
        skate.get(actor.block.remote(started))

    actor, started = Async.remote(), Signal.remote()
    ref = parent.remote(actor, started)
    skate.get(started.wait.remote())
    skate.cancel(ref)
    assert_cancelled(ref)
    assert wait_until(
        lambda: skate.get(actor.what_was_seen.remote()) == "cancelled", timeout=30
    )


# Streams ----------------------------------------------------------------------------


def test_a_stream_is_cancelled_where_it_runs() -> None:
    @skate.remote
    def items(signal: Any, started: Any) -> Iterator[int]:
        yield 1
        skate.get(started.set.remote())
        skate.get(signal.wait.remote())

    signal, started = Signal.remote(), Signal.remote()
    stream = items.remote(signal, started)
    assert skate.get(next(stream)) == 1
    # On some engines it goes on when somebody waits for it.
    skate.wait([stream], timeout=0)
    skate.get(started.wait.remote())
    skate.cancel(stream)
    assert_cancelled(next(stream))
    assert stream.is_finished()


@pytest.mark.differs(ray="what was not read is cancelled, too")
def test_a_stream_is_cancelled_where_it_waits_to_be_read() -> None:
    @skate.remote(_generator_backpressure_num_objects=1)
    def items(ended: Any) -> Iterator[int]:
        try:
            while True:
                yield 1
        except KeyboardInterrupt:
            skate.get(ended.set.remote())
            raise

    ended = Signal.remote()
    stream = items.remote(ended)
    skate.wait([stream])
    skate.cancel(stream)
    skate.get(ended.wait.remote(), timeout=30)
    assert skate.get(next(stream)) == 1
    assert_cancelled(next(stream))


def test_a_stream_of_an_async_actor_is_cancelled() -> None:
    actor, started = Async.remote(), Signal.remote()
    stream = actor.items.remote(started)
    assert skate.get(next(stream)) == 1
    skate.get(started.wait.remote())
    skate.cancel(stream)
    assert_cancelled(next(stream))


@pytest.mark.differs(ray="what was not read is cancelled, too")
def test_a_stream_of_an_actor_is_cancelled() -> None:
    plain, counter = Plain.remote(), Counter.remote()
    stream = plain.items.options(_generator_backpressure_num_objects=1).remote(counter)
    skate.wait([stream])
    skate.cancel(stream)
    assert skate.get(next(stream)) == 1
    assert_cancelled(next(stream))
    assert skate.get(plain.is_cancelled.remote()) is False


def test_what_is_no_ref_cannot_be_cancelled() -> None:
    for thing in (1, [identity.remote(1)], Counter.remote()):
        with pytest.raises(TypeError, match=r"skate\.cancel takes an ObjectRef"):
            skate.cancel(thing)  # type: ignore[arg-type]
