"""Refs in asyncio and as futures; several threads of one driver."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Any

import pytest
from helpers import Counter, Signal, add, fail, identity, wait_for

import skate

pytestmark = pytest.mark.usefixtures("engine")


def test_a_ref_can_be_awaited_in_the_driver() -> None:
    async def main() -> int:
        return await add.remote(1, 2)

    assert asyncio.run(main()) == 3


def test_many_refs_can_be_gathered() -> None:
    async def main() -> list[int]:
        return list(await asyncio.gather(*(add.remote(i, i) for i in range(50))))

    assert asyncio.run(main()) == list(range(0, 100, 2))


def test_awaiting_a_failed_task_raises_its_error() -> None:
    async def main() -> None:
        await fail.remote(ValueError("awaited"))

    with pytest.raises(ValueError, match="awaited"):
        asyncio.run(main())


def test_the_event_loop_runs_on_while_a_ref_is_awaited() -> None:
    signal = Signal.remote()

    async def main() -> str:
        late = asyncio.ensure_future(_await(wait_for.remote(signal, "late")))
        await signal.wait_for_waiting.remote(1)
        assert not late.done()
        await signal.set.remote()
        return await late

    assert asyncio.run(main()) == "late"


async def _await(ref: skate.ObjectRef[Any]) -> Any:
    return await ref


def test_waiting_for_a_ref_may_be_cancelled() -> None:
    signal = Signal.remote()
    ref = wait_for.remote(signal, 1)

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_await(ref), 0.01)

    asyncio.run(main())
    signal.set.remote()
    assert skate.get(ref) == 1


def test_a_future_has_the_value_or_the_error() -> None:
    assert add.remote(1, 2).future().result(timeout=60) == 3
    error = fail.remote(KeyError("gone")).future().exception(timeout=60)
    assert isinstance(error, KeyError)


def test_futures_of_refs_work_with_the_standard_library() -> None:
    signal = Signal.remote()
    late, quick = wait_for.remote(signal, "late").future(), skate.put("quick").future()
    done, _ = concurrent.futures.wait([late, quick], return_when="FIRST_COMPLETED")
    assert done == {quick}
    signal.set.remote()
    assert late.result(timeout=60) == "late"


def test_a_future_keeps_its_ref_alive() -> None:
    assert identity.remote([1] * 1000).future().result(timeout=60) == [1] * 1000


def test_a_callback_of_a_future_is_called() -> None:
    called = threading.Event()
    identity.remote(1).future().add_done_callback(lambda _: called.set())
    assert called.wait(timeout=60)


def leave() -> None:
    raise SystemExit


def interrupt(call: Callable[[], object]) -> None:
    """As a signal's handler that raises does at the worst moment: a lock was taken."""

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if event == "return" and frame.f_code is threading.Condition.__enter__.__code__:
            raise InterruptedError
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with contextlib.suppress(InterruptedError, TimeoutError):
            call()
    finally:
        sys.settrace(before)


def test_a_callback_that_waits_for_another_future_holds_up_no_others() -> None:
    signal = Signal.remote()
    late = wait_for.remote(signal, 1).future()
    answer: Future[str] = Future()

    def wait(future: Future[int]) -> None:
        try:
            answer.set_result(f"no error, but {late.result()}")
        except RuntimeError as error:
            answer.set_result(str(error))

    first = add.remote(1, 2).future()
    first.add_done_callback(wait)
    try:
        assert "skate.get" in answer.result(60)
        assert first.result(60) == 3
        assert add.remote(3, 4).future().result(60) == 7
    finally:
        skate.get(signal.set.remote())
    assert late.result(60) == 1


@pytest.mark.parametrize(
    "meddle",
    [
        lambda future: interrupt(lambda: future.result(timeout=0)),
        lambda future: interrupt(future.cancel),
        lambda future: future.set_result("mine"),
        lambda future: future.cancel(),
        lambda future: future.add_done_callback(lambda _: leave()),
    ],
    ids=[
        "raises in result",
        "raises in cancel",
        "ends it",
        "cancels it",
        "raises SystemExit in a callback",
    ],
)
def test_futures_end_though_somebody_meddles_with_one(
    meddle: Callable[[Future[Any]], None],
) -> None:
    signal = Signal.remote()
    one, other = (wait_for.remote(signal, n).future() for n in (1, 2))
    meddle(one)
    signal.set.remote()
    assert other.result(timeout=60) == 2
    assert identity.remote(3).future().result(timeout=60) == 3


def test_a_future_may_be_asked_for_again_when_no_thread_could_be_started(
    monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    signal = Signal.remote()
    ref = wait_for.remote(signal, 1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with contextlib.suppress(RuntimeError):  # inline needs none
            ref.future()
    signal.set.remote()
    assert ref.future().result(timeout=60) == 1


def test_of_a_cancelled_future_nothing_is_kept(engine: str) -> None:
    signal = Signal.remote()
    ref = wait_for.remote(signal, 1)

    def poll() -> Future[int]:
        held = sys.getrefcount(ref)
        last = ref.future()
        futures = [ref.future() for _ in range(100)]
        assert all(future.cancel() for future in futures)
        done, _ = concurrent.futures.wait(futures, timeout=20)
        assert len(done) == 100
        assert sys.getrefcount(ref) == held + 1  # by the last
        return last

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        last = thread.submit(poll).result()
    signal.set.remote()
    assert skate.get(ref, timeout=60) == 1
    assert last.result(timeout=60) == 1


@skate.remote
def use_future() -> int:
    return add.remote(2, 3).future().result(timeout=60)


def test_futures_work_inside_tasks() -> None:
    assert skate.get(use_future.remote()) == 5


# Threads --------------------------------------------------------------------------


def test_several_threads_of_the_driver_may_submit_and_wait() -> None:
    def work(n: int) -> list[int]:
        return skate.get([add.remote(n, i) for i in range(50)])

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(16)))
    assert results == [list(range(n, n + 50)) for n in range(16)]


def test_threads_may_wait_for_the_same_ref() -> None:
    signal = Signal.remote()
    ref = wait_for.remote(signal, 9)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(skate.get, ref) for _ in range(4)]
        skate.get(signal.wait_for_waiting.remote(1))
        signal.set.remote()
        assert [future.result(timeout=60) for future in futures] == [9] * 4


def test_one_thread_may_end_what_another_waits_for() -> None:
    signal = Signal.remote()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(skate.get, wait_for.remote(signal, "done"))
        skate.get(signal.wait_for_waiting.remote(1))
        signal.set.remote()
        assert waiting.result(timeout=60) == "done"


def test_threads_share_an_actor() -> None:
    counter = Counter.remote()

    def work(_: int) -> int:
        return max(skate.get([counter.add.remote() for _ in range(20)]))

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(work, range(4))) == 80


@skate.remote
def use_threads() -> list[int]:
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(lambda i: skate.get(add.remote(i, 1)), range(6)))


@pytest.mark.differs(
    inline="hangs if the task waits for them outside of skate: it keeps the baton"
)
def test_threads_inside_a_task_may_use_skate() -> None:
    assert skate.get(use_threads.remote()) == [1, 2, 3, 4, 5, 6]
