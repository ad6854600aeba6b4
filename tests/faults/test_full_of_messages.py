"""A process whose memory is full of calls that somebody does not read."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from polling import wait_until

import skate
from skate.exceptions import ObjectStoreFullError, ResourceError

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

PART = bytes(1900)  # as large as is sent in a message


@pytest.fixture(autouse=True)
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SKATE_SPILL_DIR", "")
    with skate.init("embedded", num_cpus=2, object_store_memory=8 << 20):
        yield


@skate.remote
class Counter:
    def __init__(self) -> None:
        self.calls = 0

    def pid(self) -> int:
        return os.getpid()

    def add(self, *parts: bytes) -> int:
        self.calls += 1
        return self.calls

    def tell(self, path: Path) -> None:
        path.touch()


@skate.remote
class Gate:
    def __init__(self) -> None:
        self.is_open = asyncio.Event()

    async def open(self) -> None:
        self.is_open.set()

    async def opened(self) -> bool:
        return await self.is_open.wait()


@skate.remote
def echo(value: Any) -> Any:
    return value


def fill_with_calls(actor: Any) -> list[Any]:
    calls = []
    try:
        while True:
            calls.append(actor.add.remote(*[PART] * 50))
    except ObjectStoreFullError:
        return calls


def test_calls_to_a_stopped_actor_are_refused_by_name() -> None:
    stopped, other = Counter.remote(), Counter.remote()
    assert skate.get(echo.remote(0)) == 0
    pid = skate.get(stopped.pid.remote())
    assert skate.get(other.add.remote()) == 1
    kept = skate.put("kept")
    os.kill(pid, signal.SIGSTOP)
    try:
        calls = fill_with_calls(stopped)
        with pytest.raises(ObjectStoreFullError, match="no room for the call"):
            stopped.add.remote()
        assert len(calls) > 100
        # What is no call is said and heard as ever.
        assert skate.get(kept) == "kept"
        skate.cancel(calls.pop())
        del kept
        del other  # its process is told to end
        with pytest.raises(ObjectStoreFullError, match="no room for the call"):
            echo.remote(1)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert skate.get(calls, timeout=60) == list(range(1, len(calls) + 1))
    assert skate.get(echo.remote(1), timeout=60) == 1
    assert skate.get(stopped.add.remote(), timeout=60) == len(calls) + 1


def test_calls_wait_for_room_and_one_that_never_fits_fails() -> None:
    """They are let go at once, by the last argument of all."""
    counter, gate = Counter.remote(), Gate.remote()
    assert skate.get(counter.add.remote()) == 1
    last = gate.opened.remote()
    calls = [counter.add.remote(last, *[PART] * 7000) for _ in range(10)]
    too_long = counter.add.remote(last, *[PART] * 45_000)
    after = counter.add.remote(last)
    gate.open.remote()
    assert skate.get(calls, timeout=60) == list(range(2, 12))
    with pytest.raises(ResourceError, match="does not fit"):
        skate.get(too_long, timeout=60)
    assert skate.get(after, timeout=60) == 12


@skate.remote
class Maker:
    def make_after(self, signal_path: str) -> str:
        """Makes an actor that outlives it, of much code; what its first call raises."""

        class Heavy:
            weight = bytes(400_000)

            def weighs(self) -> int:
                return len(self.weight)

        with open(signal_path) as pipe:
            pipe.read()
        heavy = skate.remote(Heavy).options(name="heavy", lifetime="detached").remote()
        try:
            return str(skate.get(heavy.weighs.remote()))
        except ResourceError as error:
            return str(error)


def test_a_detached_actor_whose_code_does_not_fit_says_so(tmp_path: Path) -> None:
    stopped, maker = Counter.remote(), Maker.remote()
    pid = skate.get(stopped.pid.remote())
    path = str(tmp_path / "signal")
    os.mkfifo(path)
    outcome = maker.make_after.remote(path)
    os.kill(pid, signal.SIGSTOP)
    try:
        fill_with_calls(stopped)
        with open(path, "w"):
            pass
        said = skate.get(outcome, timeout=60)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "could not be constructed: its code and arguments do not fit" in said


def test_what_has_come_is_not_overlooked_however_much_it_is(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    counter = Counter.remote()
    refs = [counter.add.remote() for _ in range(20_000)]
    refs.append(counter.tell.remote(ended))
    assert wait_until(ended.exists)  # and all calls before it
    ready, rest = skate.wait(refs, num_returns=len(refs), timeout=0)
    assert len(ready) == len(refs)
    assert not rest
