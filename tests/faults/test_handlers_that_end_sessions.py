"""A signal's handler that ends the session which the interrupted call waits for."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from polling import wait_until

import skate
from skate import collective
from skate.exceptions import EngineDiedError

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

SKATE = str(Path(skate.__file__).parent)


@skate.remote
def never() -> None:
    threading.Event().wait()


@skate.remote
def once(value: None) -> None:
    return value


CALLS: dict[str, Callable[[skate.ObjectRef[None]], object]] = {
    "get": lambda ref: skate.get([ref]),
    "get one": skate.get,
    "wait": lambda ref: skate.wait([ref]),
    "as_completed": lambda ref: next(skate.as_completed([ref])),
    "map_unordered": lambda ref: next(skate.map_unordered(once, [ref])),
}


@pytest.fixture
def ends_session() -> Iterator[None]:
    def end_session(number: int, frame: object) -> None:
        skate.shutdown()
        raise KeyboardInterrupt("of the handler")

    before = signal.signal(signal.SIGINT, end_session)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_once_it_waits() -> None:
    main = threading.main_thread().ident
    assert main is not None

    def waits() -> bool:
        frame = sys._current_frames()[main]
        return frame.f_code.co_filename.startswith(SKATE)

    wait_until(waits)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_error_of_the_handler_is_raised_and_no_session_begun(
    call: Callable[[skate.ObjectRef[None]], object], ends_session: None
) -> None:
    skate.init("embedded", num_cpus=1)
    ref = never.remote()
    thread = threading.Thread(target=interrupt_once_it_waits)
    thread.start()
    with pytest.raises(KeyboardInterrupt, match="of the handler"):
        call(ref)
    thread.join()
    assert not skate.is_initialized()


@skate.remote
class Stuck:
    """Blocks in a call of skate, on the inline engine on a thread of its own."""

    def wait(self, gate: skate.ActorHandle[Stuck]) -> None:
        skate.get(gate.turn.remote(), timeout=100)

    async def turn(self) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("call", ["get", "get one", "wait", "as_completed"])
def test_the_inline_engine_ends_at_once_and_its_threads_with_it(
    call: str, ends_session: None
) -> None:
    before = set(threading.enumerate())
    skate.init("inline", num_cpus=2)
    ref = Stuck.remote().wait.remote(Stuck.remote())
    thread = threading.Thread(target=interrupt_once_it_waits)
    thread.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="of the handler"):
        CALLS[call](ref)
    assert time.monotonic() - began < 1
    thread.join()
    assert not skate.is_initialized()
    assert wait_until(lambda: set(threading.enumerate()) <= before)


@skate.remote
def give(x: int) -> int:
    return x


@pytest.mark.parametrize("engine", ["embedded", "inline"])
def test_a_handler_may_ask_for_a_future_while_the_first_one_is_made(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []

    def handle(number: int, frame: object) -> None:
        results.append(other.future().result(timeout=20))

    start = threading.Thread.start
    threads = []

    def start_late(thread: threading.Thread) -> None:
        if thread.name == "skate-futures":
            threads.append(thread)
            if len(threads) == 1:
                signal.raise_signal(signal.SIGUSR1)
        start(thread)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with skate.init(engine, num_cpus=1):
            ref, other = give.remote(1), give.remote(2)
            skate.get([ref, other])
            monkeypatch.setattr(threading.Thread, "start", start_late)
            assert ref.future().result(timeout=20) == 1
            assert give.remote(3).future().result(timeout=20) == 3
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert results == [2]
    assert wait_until(lambda: not any(thread.is_alive() for thread in threads))


def test_a_handler_may_end_the_session_while_a_group_is_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add = weakref.WeakSet.add

    def add_late(self: weakref.WeakSet[object], item: object) -> None:
        if type(item).__name__ == "EmbeddedGroup":
            signal.raise_signal(signal.SIGUSR1)
        add(self, item)

    before = signal.signal(signal.SIGUSR1, lambda *_: skate.shutdown())
    monkeypatch.setattr(weakref.WeakSet, "add", add_late)
    try:
        skate.init("embedded", num_cpus=1)
        with pytest.raises(EngineDiedError):
            collective.create_group(1).join(0).barrier()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not skate.is_initialized()
