"""Names of any length and of any characters; and looks at what is just ending."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from polling import wait_until

import skate
from skate import debug
from skate.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    ObjectStoreFullError,
)
from skate.util import state

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

# Whatever a field's size, one of the first three is cut within a character there.
NAMES = {
    "short": "short",
    "kanji": "関数" * 150,
    "kanji-1": "a" + "関数" * 150,
    "kanji-2": "ab" + "関数" * 150,
    "emoji": "abc" + "😀" * 100,
    "half-a-pair": "half \ud800 of a pair",
    "zero": "with \0 in it",
    "endless": "x" * 70_000,
    "endless-kanji": "関" * 70_000,
}


@pytest.fixture(params=NAMES.values(), ids=NAMES.keys())
def name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SKATE_HANG_REPORT_S", "0.1")
    skate.init("embedded", num_cpus=2, object_store_memory=32 << 20)
    yield
    skate.shutdown()


pytestmark = pytest.mark.usefixtures("session")


class Gate:
    """Lets calls that read from it go on."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self.path = f"/proc/{os.getpid()}/fd/{self._read}"

    def open(self) -> None:
        if self._write >= 0:
            os.close(self._write)
        self._write = -1


@pytest.fixture
def gate(session: None) -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()
    os.close(gate._read)


def named(function: Callable[..., Any], name: str) -> Any:
    function.__name__ = function.__qualname__ = name
    return skate.remote(function)


def blocking(name: str) -> Any:
    def block(path: str) -> int:
        with open(path, "rb") as file:
            file.read()
        return 7

    return named(block, name)


def failing(name: str) -> Any:
    def fail() -> None:
        raise ValueError("no")

    return named(fail, name)


def shows(text: str, name: str) -> bool:
    """Whether ``text`` can be printed, and is the beginning of ``name``."""
    text.encode()
    beginning = text.partition("\ufffd")[0]
    printed = name.encode("utf-8", "backslashreplace").decode()
    return beginning != "" and printed.startswith(beginning)


def names_shown(name: str) -> list[str]:
    return [shown for shown in skate.summary().functions if shown[:2] == name[:2]]


def test_a_long_get_of_a_task_of_any_name(name: str, gate: Gate) -> None:
    ref = blocking(name).remote(gate.path)
    with pytest.raises(GetTimeoutError):
        skate.get(ref, timeout=1.5)  # the hang check has looked at it
    gate.open()
    assert skate.get(ref) == 7


def test_an_await_of_a_task_of_any_name(name: str, gate: Gate) -> None:
    async def both() -> list[int]:
        first, second = (blocking(name).remote(gate.path) for _ in range(2))
        waiting = asyncio.gather(first, second)
        await asyncio.wait([waiting], timeout=1.5)
        gate.open()
        return await waiting

    assert asyncio.run(both()) == [7, 7]


def test_a_task_of_any_name_is_shown_everywhere(
    name: str, gate: Gate, tmp_path: Path
) -> None:
    running = blocking(name).remote(gate.path)
    failed = failing(name).remote()
    with pytest.raises(ValueError, match="no") as caught:
        skate.get(failed)
    str(caught.value).encode("utf-8", "replace")
    assert wait_until(
        lambda: any(function.running for function in skate.summary().functions.values())
    )
    (shown,) = names_shown(name)
    assert shows(shown, name)
    function = skate.summary().functions[shown]
    assert (function.failed, function.running) == (1, 1)
    str(skate.summary()).encode()
    rows = state.list_tasks(filters=[("name", "=", shown)])
    assert {row.state for row in rows} == {"FAILED", "RUNNING"}
    path = tmp_path / "trace.json"
    skate.timeline(path)
    events = json.loads(path.read_text())["traceEvents"]
    assert shown in {event["name"] for event in events}
    assert shown[:20] in skate.why(running)
    debug.stacks().encode()
    debug.leftovers()
    gate.open()
    assert skate.get(running) == 7


def test_an_actor_and_a_method_of_any_name(name: str) -> None:
    class Plain:
        def ready(self) -> int:
            return 1

    def method(self: Any, **words: Any) -> Any:
        return words

    if "\0" not in name and "\ud800" not in name:  # Python has no such classes
        Plain.__name__ = Plain.__qualname__ = name
    called = name[:20_000]
    setattr(Plain, called, method)
    actor = skate.remote(Plain).remote()
    assert skate.get(actor.ready.remote()) == 1
    short = name[:100]
    assert skate.get(getattr(actor, called).remote(**{short: 2})) == {short: 2}
    functions = skate.summary().functions
    ready = [shown for shown in functions if shown[:2] == Plain.__name__[:2]]
    assert sum(functions[shown].finished for shown in ready) == 3
    for row in [*state.list_tasks(), *state.list_actors(), *state.list_workers()]:
        repr(row).encode("utf-8", "backslashreplace")
    skate.timeline(os.devnull)


def test_a_call_may_be_given_any_name(name: str) -> None:
    @skate.remote
    def plain(x: int) -> int:
        return x + 1

    assert skate.get([plain.options(name=name).remote(i) for i in range(3)]) == [
        1,
        2,
        3,
    ]
    (shown,) = names_shown(name)
    assert shows(shown, name)
    assert skate.summary().functions[shown].finished == 3


def test_a_full_store_names_functions_of_any_name(name: str) -> None:
    def make() -> Any:
        return np.ones(2 << 20, np.uint8)

    function = named(make, name)

    def fill(kept: list[Any]) -> None:
        while True:
            kept.append(skate.get(function.remote()))

    with pytest.raises(ObjectStoreFullError) as caught:
        fill([])
    str(caught.value).encode()


def test_words_of_calls_come_as_they_were_given(name: str) -> None:
    @skate.remote
    def words(**given: Any) -> list[str]:
        return list(given)

    assert skate.get(words.remote(**{name[:100]: 1})) == [name[:100]]
    if len(name.encode("utf-8", "surrogatepass")) < 1 << 16:
        assert skate.get(words.remote(**{name: 1})) == [name]
    else:  # said at the call, and not cut
        with pytest.raises(ValueError, match="65535"):
            words.remote(**{name: 1})


def test_functions_without_a_place_are_counted_together() -> None:
    def make(i: int) -> Any:
        return named(lambda: i, f"function {i}")

    assert skate.get([make(i).remote() for i in range(600)]) == list(range(600))
    functions = skate.summary().functions
    assert sum(function.finished for function in functions.values()) == 600
    assert functions["(others)"].finished > 0  # in each worker, what found no place
    assert {row.name for row in state.list_tasks(limit=1000)} >= {"(others)"}


def test_a_function_that_is_made_again_and_again_keeps_its_name() -> None:
    @skate.remote
    def kept() -> int:
        return 0

    assert skate.get(kept.remote()) == 0
    for i in range(2000):

        @skate.remote
        def closure(i: int = i) -> int:
            return i

        assert skate.get(closure.remote()) == i
    assert skate.get(kept.remote()) == 0
    functions = skate.summary().functions
    assert functions["closure"].finished == 2000
    assert functions["kept"].finished == 2
    assert "(others)" not in functions


def test_why_of_tasks_that_share_what_they_need_tells_each_once(gate: Gate) -> None:
    @skate.remote
    def join(*parts: int) -> int:
        return len(parts)

    layer = [blocking("first").remote(gate.path)]
    for _ in range(12):
        layer = [join.remote(*layer) for _ in range(4)]
    lines = skate.why(layer[0]).splitlines()
    assert len(lines) < 300
    assert any("see above" in line for line in lines)
    gate.open()
    assert skate.get(layer) == [4] * 4


def test_a_look_at_a_session_whose_processes_end_never_raises(
    tmp_path: Path,
) -> None:
    @skate.remote
    class Sleeper:
        def pid(self) -> int:
            return os.getpid()

        def sleep(self) -> None:
            threading.Event().wait()

    refs: list[Any] = []
    raised: list[BaseException] = []
    done = threading.Event()

    def look() -> None:
        try:
            while not done.is_set():
                for ref in refs[-3:]:
                    skate.why(ref)
                state.list_tasks()
                skate.summary()
                debug.stacks()
                skate.timeline(tmp_path / "trace.json")
        except BaseException as error:
            raised.append(error)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(12):
            actor = Sleeper.remote()
            skate.get(actor.pid.remote())
            refs.append(actor.sleep.remote())
            refs.append(actor.sleep.remote())
            skate.kill(actor)
            with pytest.raises(ActorDiedError):
                skate.get(refs[-1])
    finally:
        done.set()
        looking.join()
    assert not raised
