"""Order of calls, threads, coroutines, concurrency groups and limits."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest
from helpers import Counter, Signal, fail, identity, wait_for

import skate
from skate.exceptions import (
    ActorClassInheritanceException,
    ActorDiedError,
    PendingCallsLimitExceeded,
    TaskCancelledError,
)

pytestmark = pytest.mark.usefixtures("engine")


@skate.remote
class Log:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def note(self, *items: Any) -> None:
        self.seen.append(items[0])

    def all(self) -> list[Any]:
        return self.seen


def test_calls_of_one_caller_keep_their_order_across_copied_handles() -> None:
    log = Log.remote()
    (copy,) = skate.get(identity.remote([log]))
    for i in range(200):
        (log, copy)[i % 2].note.remote(i)
    assert skate.get(copy.all.remote()) == list(range(200))


@skate.remote
class Writer:
    def write(self, logs: list[skate.ActorHandle[Any]], name: str, n: int) -> None:
        for i in range(n):
            logs[i % len(logs)].note.remote((name, i))
        skate.get(logs[0].all.remote())


def test_each_of_many_callers_has_an_order_of_its_own() -> None:
    log = Log.remote()
    writers = [Writer.remote() for _ in range(3)]
    skate.get([w.write.remote([log, log], str(i), 100) for i, w in enumerate(writers)])
    seen = skate.get(log.all.remote())
    for name in "012":
        assert [i for who, i in seen if who == name] == list(range(100))


def test_out_of_order_calls_overtake_those_that_lack_arguments() -> None:
    signal = Signal.remote()
    log = Log.options(allow_out_of_order_execution=True).remote()
    late = log.note.remote(wait_for.remote(signal, "late"))
    skate.get(log.note.remote("early"))
    signal.set.remote()
    skate.get(late)
    assert skate.get(log.all.remote()) == ["early", "late"]


def test_out_of_order_calls_that_lack_arguments_are_each_run_once() -> None:
    signals = [Signal.remote() for _ in range(3)]
    log = Log.options(allow_out_of_order_execution=True).remote()
    lacked = [wait_for.remote(signal, i) for i, signal in enumerate(signals)]
    refs = [log.note.remote(i, lacked[i % 3]) for i in range(30)]
    for ref in refs[:6]:
        skate.cancel(ref)
    skate.get(log.note.remote("between"))
    for signal in reversed(signals):
        signal.set.remote()
    skate.get(refs[6:])
    for ref in refs[:6]:
        with pytest.raises(TaskCancelledError):
            skate.get(ref)
    seen = skate.get(log.all.remote())
    assert seen[0] == "between"
    assert sorted(seen[1:]) == list(range(6, 30))


def test_out_of_order_calls_that_lack_arguments_end_with_their_actor() -> None:
    signal = Signal.remote()
    log = Log.options(allow_out_of_order_execution=True).remote()
    late = log.note.remote(wait_for.remote(signal, "late"))
    skate.get(log.note.remote("early"))
    skate.kill(log)
    with pytest.raises(ActorDiedError):
        skate.get(late)
    signal.set.remote()


def test_out_of_order_calls_that_lack_arguments_keep_their_actor() -> None:
    signal = Signal.remote()
    log = Log.options(allow_out_of_order_execution=True).remote()
    late = log.note.remote(wait_for.remote(signal, "late"))
    del log
    signal.set.remote()
    assert skate.get(late) is None


# Concurrency groups ---------------------------------------------------------------


@skate.remote(concurrency_groups={"io": 2, "compute": 1})
class Grouped:
    @skate.method(concurrency_group="io")
    def io(self, signal: skate.ActorHandle[Any]) -> str:
        skate.get(signal.wait.remote())
        return threading.current_thread().name

    @skate.method(concurrency_group="compute")
    def compute(self, signal: skate.ActorHandle[Any]) -> None:
        skate.get(signal.wait.remote())

    def plain(self) -> str:
        return "plain"

    def plain_wait(self, signal: skate.ActorHandle[Any]) -> None:
        skate.get(signal.wait.remote())


@skate.remote(concurrency_groups={"io": 2, "compute": 1})
class GroupedAsync:
    @skate.method(concurrency_group="io")
    async def io(self, signal: skate.ActorHandle[Any]) -> None:
        await signal.wait.remote()

    @skate.method(concurrency_group="compute")
    async def compute(self, signal: skate.ActorHandle[Any]) -> None:
        await signal.wait.remote()

    async def plain(self) -> str:
        return "plain"


@pytest.mark.parametrize("kind", [Grouped, GroupedAsync])
def test_each_concurrency_group_has_its_own_limit(kind: Any) -> None:
    signal, actor = Signal.remote(), kind.remote()
    refs = [actor.io.remote(signal) for _ in range(3)]
    refs += [actor.compute.remote(signal) for _ in range(2)]
    assert skate.get(signal.wait_for_waiting.remote(3)) == 3
    assert skate.get(actor.plain.remote()) == "plain"
    assert skate.get(signal.waiting.remote()) == 3
    signal.set.remote()
    skate.get(refs)


@pytest.mark.parametrize("kind", [Grouped, GroupedAsync])
def test_the_group_can_be_chosen_at_the_call(kind: Any) -> None:
    signal, actor = Signal.remote(), kind.remote()
    blocked = actor.compute.remote(signal)
    skate.get(signal.wait_for_waiting.remote(1))
    moved = actor.compute.options(concurrency_group="io").remote(signal)
    assert skate.get(signal.wait_for_waiting.remote(2)) == 2
    signal.set.remote()
    skate.get([blocked, moved])


def test_outside_of_the_groups_a_call_runs_at_a_time() -> None:
    signal, actor = Signal.remote(), Grouped.remote()
    blocked = actor.plain_wait.remote(signal)
    skate.get(signal.wait_for_waiting.remote(1))
    waits = actor.plain.remote()
    in_group = actor.io.remote(signal)
    assert skate.get(signal.wait_for_waiting.remote(2)) == 2
    assert skate.wait([waits], timeout=0.01) == ([], [waits])
    signal.set.remote()
    skate.get([blocked, in_group, waits])


def test_an_unknown_group_is_refused_with_the_known_ones() -> None:
    actor = Grouped.remote()
    with pytest.raises(ValueError, match=r"no concurrency group 'ios': .*'io'"):
        actor.plain.options(concurrency_group="ios")
    with pytest.raises(ValueError, match="no concurrency group 'io'"):

        @skate.remote
        class Wrong:
            @skate.method(concurrency_group="io")
            def call(self) -> None: ...


# Limits ---------------------------------------------------------------------------


def test_max_pending_calls_is_a_limit_for_each_caller() -> None:
    signal = Signal.remote()
    actor = Counter.options(max_pending_calls=2).remote()
    refs = [actor.add.remote(wait_for.remote(signal, 1)) for _ in range(2)]
    with pytest.raises(PendingCallsLimitExceeded, match="max_pending_calls=2"):
        actor.add.remote()
    signal.set.remote()
    assert skate.get(refs) == [1, 2]
    assert skate.get(actor.add.remote()) == 3


# Async actors ---------------------------------------------------------------------


@skate.remote
class OneLoop:
    def __init__(self) -> None:
        self.threads: set[int] = set()

    async def first(self) -> None:
        self.threads.add(threading.get_ident())

    def second(self) -> None:
        self.threads.add(threading.get_ident())

    def count(self) -> int:
        return len(self.threads)


def test_sync_methods_of_an_async_actor_run_on_its_loop() -> None:
    actor = OneLoop.remote()
    for _ in range(3):
        actor.first.remote()
        actor.second.remote()
    assert skate.get(actor.count.remote()) == 1


@skate.remote(max_concurrency=1)
class Serial:
    def __init__(self) -> None:
        self.inside = 0

    async def call(self, other: skate.ActorHandle[Any]) -> int:
        self.inside += 1
        seen = self.inside
        await other.get.remote()
        self.inside -= 1
        return seen


def test_max_concurrency_of_one_keeps_coroutines_apart() -> None:
    actor, other = Serial.remote(), Counter.remote()
    assert skate.get([actor.call.remote(other) for _ in range(5)]) == [1] * 5


# Classes --------------------------------------------------------------------------


@skate.remote(num_cpus=0)
class OneAtATime:
    def __init__(self) -> None:
        self.inside = self.most = 0

    def give(self, x: Any) -> Any:
        return x

    def enter(self, signal: Any) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        skate.get(signal.wait.remote())
        self.inside -= 1

    def most_inside(self) -> int:
        return self.most


def test_after_calls_that_cannot_start_still_one_runs_at_a_time() -> None:
    actor, signal = OneAtATime.remote(), Signal.remote()
    failed = actor.give.remote(fail.remote(LookupError()))
    failed_too = actor.give.remote(failed)
    entered = [actor.enter.remote(signal) for _ in range(3)]
    skate.get(signal.wait_for_waiting.remote(1))
    signal.set.remote()
    skate.get(entered)
    assert skate.get(actor.most_inside.remote()) == 1
    with pytest.raises(LookupError):
        skate.get(failed_too)


def test_an_actor_class_is_not_inherited_from() -> None:
    with pytest.raises(ActorClassInheritanceException, match="__wrapped__"):

        class Derived(Counter):  # type: ignore[misc,valid-type]
            pass


def test_a_bare_method_decorator_changes_nothing() -> None:
    @skate.remote
    class Plain:
        @skate.method
        def call(self) -> int:
            return 1

    assert skate.get(Plain.remote().call.remote()) == 1


def test_methods_accept_what_means_nothing_here() -> None:
    @skate.remote
    class Plain:
        @skate.method(enable_task_events=False, num_returns=1)
        def call(self) -> int:
            return 1

    assert skate.get(Plain.remote().call.options(name="x").remote()) == 1


@skate.remote
class Storing:
    async def in_loop(self) -> Any:
        return skate.put("stored")

    def plain(self) -> Any:
        return skate.put("stored")

    def plain_after_all(self) -> Any:
        return self.in_loop()


def test_a_ref_that_a_method_of_an_async_actor_returns_stays_a_ref() -> None:
    actor = Storing.remote()
    calls = [actor.in_loop, actor.plain, actor.plain_after_all]
    refs = skate.get([call.remote() for call in calls])
    assert [type(ref) for ref in refs] == [skate.ObjectRef] * 3
    assert skate.get(refs) == ["stored"] * 3


@skate.remote(max_restarts=1)
class HasTasks:
    def __init__(self) -> None:
        self.calls = 0

    async def count(self) -> int:
        self.calls += 1
        return self.calls

    async def cancel_all_tasks(self) -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def start_a_task_that_exits(self, status: int) -> None:
        async def end() -> None:
            sys.exit(status)

        self.task = asyncio.get_running_loop().create_task(end())
        self.task.add_done_callback(lambda task: task.exception())  # or it is logged


@pytest.mark.differs(ray="Ray's own tasks run on the loop, too")
def test_an_async_actor_may_cancel_all_tasks_of_its_loop() -> None:
    actor = HasTasks.remote()
    assert skate.get(actor.count.remote(), timeout=20) == 1
    skate.get(actor.cancel_all_tasks.remote(), timeout=20)
    for calls in (2, 3):
        assert skate.get(actor.count.remote(), timeout=20) == calls


@pytest.mark.differs(ray="Ray's loop ends, and the actor hangs")
def test_a_task_of_an_async_actor_that_exits_ends_the_actor() -> None:
    actor = HasTasks.remote()
    skate.get(actor.start_a_task_that_exits.remote(0), timeout=20)

    def call_on() -> None:
        while True:
            skate.get(actor.count.remote(), timeout=20)

    with pytest.raises(ActorDiedError):
        call_on()
