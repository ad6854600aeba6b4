"""``init`` and ``shutdown`` where another of them is under way, or long over."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import Counter, Signal, identity
from polling import wait_until

import skate
from skate.exceptions import EngineError, GetTimeoutError, SkateError

PATIENCE_S = 60.0
WHILE_S = 8.0


@skate.remote
def wait_a_while(signals: skate.ActorHandle[Signal]) -> None:
    """No longer: a Ray that is not the session's own lets it go on after that."""
    with contextlib.suppress(GetTimeoutError):
        skate.get(signals.wait.remote(), timeout=WHILE_S)


def call_at_shutdown(callback: Callable[[], None]) -> list[object]:
    """Has ``callback`` called in the middle of the next ``shutdown``.

    The list has what the callback raised, or None, once it has returned.
    """
    said: list[object] = []

    def call(_: Any) -> None:
        try:
            callback()
        except BaseException as error:
            said.append(error)
        else:
            said.append(None)

    signals = Signal.remote()
    future = wait_a_while.remote(signals).future()
    future.add_done_callback(call)
    skate.get(signals.wait_for_waiting.remote(1))
    return said


@pytest.mark.usefixtures("engine")
def test_a_callback_may_shut_down_while_the_session_ends() -> None:
    said = call_at_shutdown(skate.shutdown)
    skate.shutdown()
    assert wait_until(lambda: said == [None])
    assert not skate.is_initialized()


def test_a_callback_cannot_start_a_session_while_one_ends(engine: str) -> None:
    said = call_at_shutdown(lambda: skate.init(engine) and None)
    skate.shutdown()
    assert wait_until(lambda: bool(said))
    assert isinstance(said[0], RuntimeError)


@pytest.fixture
def shut_down_by_signal() -> Iterator[threading.Event]:
    """The handler of SIGTERM shuts skate down, and says when it has."""
    returned = threading.Event()

    def handle(*_: object) -> None:
        skate.shutdown()
        returned.set()

    before = signal.signal(signal.SIGTERM, handle)
    yield returned
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("engine")
def test_a_signal_handler_may_shut_down_while_the_session_ends(
    shut_down_by_signal: threading.Event,
) -> None:
    def come() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert shut_down_by_signal.wait(PATIENCE_S)

    said = call_at_shutdown(come)
    skate.shutdown()
    assert wait_until(lambda: said == [None])
    assert not skate.is_initialized()


class InTheMiddle(list[str]):
    """For ``preload``: does something in the middle of ``init``."""

    def __init__(self, act: Callable[[], Any]) -> None:
        super().__init__()
        self._act: Callable[[], Any] | None = act

    def __iter__(self) -> Iterator[str]:
        act, self._act = self._act, None
        if act is not None:
            try:
                self.result = act()
            except BaseException as error:
                self.result = error
        return super().__iter__()


def test_what_needs_a_session_fails_in_the_middle_of_init(start: Any) -> None:
    middle = InTheMiddle(lambda: identity.remote(1))
    start(preload=middle)
    assert isinstance(middle.result, RuntimeError)
    assert "while skate starts" in str(middle.result)
    assert skate.get(identity.remote(1)) == 1


def test_a_signal_handler_that_shuts_down_in_the_middle_of_init_comes_before_it(
    start: Any, shut_down_by_signal: threading.Event
) -> None:
    start(preload=InTheMiddle(lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert shut_down_by_signal.is_set()
    assert skate.get(identity.remote(1)) == 1


class Client:
    """Says goodbye to its actor when it goes; in a cycle, so that goes late."""

    def __init__(self, said: list[object]) -> None:
        self._me = self
        self._actor = Counter.remote()
        self._said = said

    def __del__(self) -> None:
        try:
            self._said.append(self._actor.add.remote())
        except SkateError as error:
            self._said.append(error)


@pytest.fixture
def garbage(start: Any) -> Iterator[list[object]]:
    """A client of an ended session that is not collected yet; what it says then."""
    said: list[object] = []
    gc.disable()
    start(num_cpus=1)
    Client(said)
    skate.shutdown()
    yield said
    gc.enable()


def test_a_finalizer_that_calls_an_actor_of_the_last_session_starts_none(
    garbage: list[object],
) -> None:
    gc.collect()
    assert [type(said) for said in garbage] == [EngineError]
    assert not skate.is_initialized()


def test_a_finalizer_that_calls_an_actor_may_come_in_the_middle_of_init(
    start: Any, garbage: list[object]
) -> None:
    start(preload=InTheMiddle(gc.collect))
    assert [type(said) for said in garbage] == [EngineError]
    assert skate.get(identity.remote(1)) == 1


def test_refs_and_handles_start_no_session(start: Any) -> None:
    start(num_cpus=1)
    ref, actor = skate.put(1), Counter.remote()
    skate.shutdown()
    calls: list[Callable[[], Any]] = [
        lambda: skate.get(ref),
        lambda: skate.get([ref]),
        lambda: skate.wait([ref]),
        lambda: skate.cancel(ref),
        lambda: next(skate.as_completed([ref])),
        lambda: skate.why(ref),
        lambda: skate.kill(actor),
        lambda: actor.add.remote(),
    ]
    for call in calls:
        with pytest.raises(EngineError, match="a session that has ended"):
            call()
    assert not skate.is_initialized()
