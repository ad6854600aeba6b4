"""Callers, readers and makers that end, or give up, in the middle of it."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from polling import wait_until

import skate
from skate.actor import exit_actor
from skate.exceptions import ActorDiedError, TaskCancelledError, WorkerCrashedError

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

TIMEOUT = 60


@pytest.fixture
def session() -> Iterator[None]:
    with skate.init("embedded", num_cpus=3):
        yield


def wait_for_file(path: Path) -> None:
    while not path.exists():
        threading.Event().wait(0.002)


@skate.remote
class Named:
    def __init__(self, x: object = None) -> None:
        pass

    def ping(self) -> str:
        return "pong"


class Stuck:
    """Is pickled once the file is there: then that fails, or ends the process."""

    def __init__(self, gate: Path, how: str) -> None:
        self.gate, self.how = gate, how

    def __reduce__(self) -> tuple[object, ...]:
        self.gate.with_suffix(".reached").touch()
        wait_for_file(self.gate)
        if self.how == "dies":
            os._exit(1)
        raise ValueError("not today")


def create(gate: Path, how: str, lifetime: str | None) -> str:
    try:
        Named.options(name="cut", lifetime=lifetime).remote(Stuck(gate, how))
    except TypeError:
        return "failed"
    return "created"


@pytest.mark.parametrize("lifetime", ["detached", None])
@pytest.mark.parametrize("how", ["fails", "dies"])
def test_calls_of_an_actor_whose_creation_is_cut_short_fail(
    session: None, tmp_path: Path, how: str, lifetime: str | None
) -> None:
    gate = tmp_path / "gate"
    maker = skate.remote(max_retries=0)(create).remote(gate, how, lifetime)
    wait_for_file(tmp_path / "gate.reached")
    actor = skate.get_actor("cut")
    call = actor.ping.remote()
    gate.touch()
    if how == "fails":
        assert skate.get(maker, timeout=TIMEOUT) == "failed"
    else:
        with pytest.raises(WorkerCrashedError):
            skate.get(maker, timeout=TIMEOUT)
    with pytest.raises((ActorDiedError, skate.exceptions.OwnerDiedError)):
        skate.get(call, timeout=TIMEOUT)
    # The name is free again, once its process has ended.
    another = None
    while another is None:
        try:
            another = Named.options(name="cut").remote()
        except skate.exceptions.ActorAlreadyExistsError:
            threading.Event().wait(0.002)
    assert skate.get(another.ping.remote(), timeout=TIMEOUT) == "pong"


@skate.remote
class Async:
    async def items(self) -> object:
        for i in range(1000):
            yield i

    async def ping(self) -> str:
        return "pong"

    async def wait(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def leave(self) -> None:
        exit_actor()


def test_an_async_stream_ends_with_the_process_that_reads_it(session: None) -> None:
    @skate.remote(max_retries=0)
    def read(actor: object) -> None:
        items = actor.items.options(_generator_backpressure_num_objects=2).remote()
        for _ in range(3):
            next(items)
        os._exit(1)

    actor = Async.options(max_concurrency=1).remote()
    with pytest.raises(WorkerCrashedError):
        skate.get(read.remote(actor), timeout=TIMEOUT)
    assert skate.get(actor.ping.remote(), timeout=TIMEOUT) == "pong"


def test_what_an_async_actor_runs_can_be_cancelled_after_exit_actor(
    session: None,
) -> None:
    actor = Async.options(max_concurrency=3).remote()
    waits = actor.wait.remote()
    skate.get(actor.ping.remote(), timeout=TIMEOUT)
    leaves = actor.leave.remote()
    skate.wait([leaves], timeout=0.2)
    skate.cancel(waits)
    with pytest.raises(TaskCancelledError):
        skate.get(waits, timeout=TIMEOUT)


@skate.remote
def wait_for_gate(gate: Path) -> str:
    wait_for_file(gate)
    return "done"


@skate.remote
class Background:
    def __init__(self) -> None:
        self.go, self.gone = threading.Event(), threading.Event()
        threading.Thread(target=self.start, daemon=True).start()

    def start(self) -> None:
        self.go.wait()
        self.ref = wait_for_gate.remote(self.gate)
        self.gone.set()

    def run(self, gate: Path) -> None:
        self.gate = gate
        self.go.set()
        self.gone.wait()
        gate.with_suffix(".started").touch()
        context = skate.get_runtime_context()
        while not context.is_canceled():
            threading.Event().wait(0.002)

    def result(self) -> str:
        value: str = skate.get(self.ref)
        return value


class TooLate(Exception):
    """A time limit of the program's own."""


def strike(*_: object) -> None:
    raise TooLate


class Late:
    """The time limit is up once this has been pickled and others have their turn.

    That is when arrays that are pickled with it are copied to the store.
    """

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        pickled = threading.Event()

        def send_signal() -> None:
            pickled.wait()
            signal.raise_signal(signal.SIGALRM)

        thread = threading.Thread(target=send_signal, daemon=True)
        thread.start()
        sys.setswitchinterval(TIMEOUT)  # nobody takes a turn from who runs
        pickled.set()
        return object, ()


def test_a_result_that_is_stored_but_not_sent_takes_no_room(session: None) -> None:
    """The handler of a signal raises when the function has returned."""

    @skate.remote(max_retries=0)
    def make() -> tuple[np.ndarray, Late]:
        signal.signal(signal.SIGALRM, strike)
        return np.ones(100 << 20, np.uint8), Late()

    task = make.remote()
    with pytest.raises(TooLate):
        skate.get(task, timeout=TIMEOUT)
    del task
    gc.collect()
    assert wait_until(lambda: skate._runtime.statistics()["store_bytes"] < 1 << 20)


@pytest.mark.parametrize("threads", [1, 2])
def test_cancel_leaves_alone_what_another_thread_has_started(
    session: None, tmp_path: Path, threads: int
) -> None:
    gate = tmp_path / "gate"
    actor = Background.options(max_concurrency=threads).remote()
    call = actor.run.remote(gate)
    wait_for_file(tmp_path / "gate.started")
    skate.cancel(call, recursive=True)
    skate.get(call, timeout=TIMEOUT)
    gate.touch()
    assert skate.get(actor.result.remote(), timeout=TIMEOUT) == "done"


@skate.remote
def items() -> Iterator[int]:
    yield from range(3)


def test_refs_of_an_ended_session_find_nothing_in_the_next() -> None:
    with skate.init("embedded", num_cpus=1):
        old_actor = Named.remote()
        skate.get(old_actor.ping.remote(), timeout=TIMEOUT)
        old_stream = items.remote()
        old_item = next(old_stream)
    with skate.init("embedded", num_cpus=1):
        actor = Named.remote()
        refs = [skate.put(i) for i in range(10)]
        for use in (
            lambda: skate.kill(old_actor),
            lambda: skate.wait([old_stream], timeout=0),
            lambda: next(iter(skate.as_completed([old_stream], timeout=0))),
            lambda: skate.why(old_item),
            lambda: skate.cancel(old_stream),
        ):
            with pytest.raises(skate.exceptions.EngineError, match="has ended"):
                use()
        assert skate.get(actor.ping.remote(), timeout=TIMEOUT) == "pong"
        assert skate.get(refs) == list(range(10))


class Unspeakable:
    def __reduce__(self) -> tuple[object, ...]:
        raise KeyboardInterrupt


@skate.remote
class Reporting:
    def fail(self) -> None:
        raise ValueError(Unspeakable())


def test_a_threaded_actor_whose_error_cannot_be_told_ends(session: None) -> None:
    actor = Reporting.options(max_concurrency=2).remote()
    with pytest.raises(ActorDiedError):
        skate.get(actor.fail.remote(), timeout=TIMEOUT)


class Undecided(type):
    def __instancecheck__(cls, _: object) -> bool:
        raise ValueError("who knows")


class Transient(Exception, metaclass=Undecided):
    """Nobody can say whether an error is one."""


@skate.remote
class Looping:
    @skate.method(max_task_retries=1, retry_exceptions=[Transient])
    async def fail(self) -> None:
        raise ValueError


def test_an_async_actor_that_cannot_answer_a_call_ends(session: None) -> None:
    actor = Looping.remote()
    with pytest.raises(ActorDiedError):
        skate.get(actor.fail.remote(), timeout=TIMEOUT)


def test_threads_that_ask_why_at_once_all_get_an_answer(
    session: None, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    actor = Background.options(max_concurrency=1).remote()
    running = actor.run.remote(gate)
    waits = [actor.result.remote() for _ in range(5)]
    wait_for_file(tmp_path / "gate.started")
    alone = skate.why(waits[3]).splitlines()[0]
    assert "3 calls before it" in alone
    answers: list[str] = []

    def ask() -> None:
        answers.extend(skate.why(waits[3]).splitlines()[0] for _ in range(20))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [alone] * 80
    gate.touch()
    skate.cancel(running)
    assert skate.get(waits, timeout=TIMEOUT) == ["done"] * 5


@skate.remote
class Restless:
    """Makes and leaves frames all the time."""

    def run(self) -> None:
        context = skate.get_runtime_context()
        while not context.is_canceled():
            threading.Event().wait(0.0001)

    def get(self) -> int:
        return 1


def test_to_ask_where_a_process_stands_does_not_end_it(session: None) -> None:
    actor = Restless.remote()
    running = actor.run.remote()
    waiting = actor.get.remote()

    def ask() -> None:
        for _ in range(150):
            skate.why(waiting)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    skate.cancel(running)
    assert skate.get(waiting, timeout=TIMEOUT) == 1


def call_back_by_weak_reference(callback: Callable[[], None]) -> None:
    class Thing:
        pass

    thing = Thing()
    there = weakref.ref(thing, lambda _: callback())
    del thing
    assert there() is None


def call_back_from_c(callback: Callable[[], None]) -> None:
    ctypes.CFUNCTYPE(None)(callback)()


@pytest.mark.parametrize("call", [call_back_by_weak_reference, call_back_from_c])
def test_a_cancel_that_comes_in_a_callback_from_c_interrupts_the_code_around(
    session: None, call: Callable[[Callable[[], None]], None], tmp_path: Path
) -> None:
    @skate.remote
    def work(started: Path, caught: Path) -> None:
        def callback() -> None:
            started.touch()
            try:
                while True:  # the cancel can come nowhere else
                    pass
            finally:
                caught.touch()

        call(callback)
        while True:
            pass

    started, caught = tmp_path / "started", tmp_path / "caught"
    ref = work.remote(started, caught)
    wait_for_file(started)
    skate.cancel(ref)
    with pytest.raises(TaskCancelledError):
        skate.get(ref, timeout=TIMEOUT)
    assert caught.exists()
