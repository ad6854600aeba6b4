"""Names are used once: an old one finds nothing, never what came to its place since.

An ordinary loop goes through millions of tasks, so every table of slots is used again
and again. These tests go round more often than a narrow counter could tell apart.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator

import pytest

import skate
from skate.exceptions import TaskCancelledError

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

ROUNDS = 1 << 16  # of one slot: what 16 bits can tell apart
KEPT = 50  # functions: fewer than a worker remembers


@pytest.fixture(autouse=True)
def session() -> Iterator[None]:
    """One worker, so that everything meets in it."""
    with skate.init("embedded", num_cpus=1):
        yield


@skate.remote
def nothing() -> None: ...


@skate.remote
def pid() -> int:
    return os.getpid()


def function_that_returns(x: object) -> skate.RemoteFunction[[], object]:
    @skate.remote
    def made() -> object:
        return x

    return made


def call_and_drop(x: object) -> object:
    """What a new function returns. It goes after its result: its place is the next."""
    function = function_that_returns(x)
    result = skate.get(function.remote())
    del function
    return result


def test_no_two_objects_of_a_session_have_the_same_name() -> None:
    n = 4 * ROUNDS
    names = {skate.put(None).hex() for _ in range(n)}
    assert len(names) == n
    names |= {nothing.remote().hex() for _ in range(n // 8)}
    assert len(names) == n + n // 8


def test_a_worker_runs_the_function_that_it_was_given() -> None:
    worker = skate.get(pid.remote())
    skate.get(nothing.remote())  # its own code has a place of its own from here on
    for number in range(KEPT):  # what the worker keeps
        assert call_and_drop(-number) == -number
    for _ in range(ROUNDS - KEPT - KEPT // 2):
        skate.get(nothing.remote())
    for number in range(2 * KEPT):
        assert call_and_drop(number) == number
    assert skate.get(pid.remote()) == worker  # or nothing was shown


@skate.remote
class Asked:
    """One whose calls are cancelled as asyncio does it."""

    async def one(self) -> bool:
        await asyncio.sleep(0)
        return False


@skate.remote(max_concurrency=2)
class AskedInThreads:
    """Says of each call whether it has been told that it is cancelled."""

    def one(self) -> bool:
        return skate.get_runtime_context().is_canceled()


@pytest.mark.parametrize("actor_class", [Asked, AskedInThreads])
def test_a_cancel_that_comes_too_late_cancels_nothing_else(
    actor_class: Callable[..., object],
) -> None:
    actor = actor_class.remote()  # type: ignore[attr-defined]
    skate.get(actor.one.remote())
    for _ in range(500):  # they strike before, in and after the call
        ref = actor.one.remote()
        skate.wait([ref], timeout=0)
        skate.cancel(ref)
        try:
            skate.get(ref)
        except TaskCancelledError:
            pass
    wrong = 0
    for _ in range(ROUNDS + 1000):
        try:
            wrong += skate.get(actor.one.remote())
        except TaskCancelledError:
            wrong += 1
    assert wrong == 0


def test_old_names_stay_free_when_many_functions_live_and_go() -> None:
    """The oracle is the function's own number, at every age of the table."""
    kept = [function_that_returns(-number) for number in range(16)]
    for function in kept:
        skate.get(function.remote())
    for number in range(2000):
        assert skate.get(function_that_returns(number).remote()) == number
        if number % 100 == 0:
            values = skate.get([function.remote() for function in kept])
            assert values == [-each for each in range(16)]
