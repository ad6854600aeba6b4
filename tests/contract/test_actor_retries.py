"""Calls of actors that are tried again after an error of the method."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from polling import wait_until

import skate
from skate.exceptions import TaskCancelledError, TaskError


class Passing(Exception):
    pass


class Base:
    """Fails as often as it is told, and counts."""

    def __init__(self, failures: int = 2) -> None:
        self._failures = failures
        self._attempts = 0

    def _try(self, error: type[Exception] = Passing) -> int:
        self._attempts += 1
        if self._attempts <= self._failures:
            raise error
        return self._attempts


@skate.remote(max_task_retries=3)
class Flaky(Base):
    def call(self) -> int:
        return self._try()

    @skate.method(retry_exceptions=True)
    def retried(self) -> int:
        return self._try()

    @skate.method(retry_exceptions=[Passing])
    def retried_after_passing(self, error: type[Exception]) -> int:
        return self._try(error)

    @skate.method(retry_exceptions=True, max_task_retries=1)
    def retried_once(self) -> int:
        return self._try()

    def attempts(self) -> int:
        return self._attempts


@skate.remote(max_task_retries=3)
class AsyncFlaky(Base):
    @skate.method(retry_exceptions=True)
    async def retried(self) -> int:
        await asyncio.sleep(0)
        return self._try()


@skate.remote(max_task_retries=3, max_concurrency=2)
class ThreadedFlaky(Base):
    @skate.method(retry_exceptions=True)
    def retried(self) -> int:
        return self._try()


@skate.remote(max_task_retries=2)
class FlakyStream(Base):
    @skate.method(retry_exceptions=True)
    def items(self) -> Iterator[int]:
        yield 0
        yield 1
        self._try()
        yield 2


@skate.remote(max_task_retries=2)
class AsyncFlakyStream(Base):
    @skate.method(retry_exceptions=True)
    async def items(self) -> AsyncIterator[int]:
        yield 0
        yield 1
        self._try()
        yield 2


@pytest.mark.parametrize("kind", [Flaky, AsyncFlaky, ThreadedFlaky])
def test_a_method_is_tried_again_after_its_error(engine: str, kind: Any) -> None:
    assert skate.get(kind.remote().retried.remote()) == 3


def test_without_retry_exceptions_an_error_is_final(engine: str) -> None:
    actor = Flaky.remote()
    with pytest.raises(Passing):
        skate.get(actor.call.remote())
    assert skate.get(actor.attempts.remote()) == 1


def test_max_task_retries_is_the_limit(engine: str) -> None:
    actor = Flaky.remote(failures=9)
    with pytest.raises(Passing):
        skate.get(actor.retried.remote())
    assert skate.get(actor.attempts.remote()) == 4
    with pytest.raises(TaskError):
        skate.get(actor.retried_once.remote())
    assert skate.get(actor.attempts.remote()) == 6
    with pytest.raises(TaskError):
        skate.get(actor.retried.options(max_task_retries=0).remote())
    assert skate.get(actor.attempts.remote()) == 7
    forever = actor.retried.options(max_task_retries=-1)
    assert skate.get(forever.remote()) == 10


@pytest.mark.differs(ray="lists of types are for the other engines")
def test_a_list_says_after_which_errors(engine: str) -> None:
    actor = Flaky.remote()
    assert skate.get(actor.retried_after_passing.remote(Passing)) == 3
    actor = Flaky.remote()
    with pytest.raises(KeyError):
        skate.get(actor.retried_after_passing.remote(KeyError))
    assert skate.get(actor.attempts.remote()) == 1
    call = actor.retried_after_passing.options(retry_exceptions=[KeyError])
    assert skate.get(call.remote(KeyError)) == 3


@pytest.mark.differs(ray="lists of types are for the other engines")
def test_the_types_may_be_local_ones(engine: str) -> None:
    class Local(Exception):
        pass

    class HoldsArrays(Exception):
        rows = np.arange(3.0)
        columns = np.ones((2, 3), order="F")

    for kind in (Local, HoldsArrays):
        actor = Flaky.remote()
        call = actor.retried_after_passing.options(retry_exceptions=[kind])
        assert skate.get(call.remote(kind)) == 3


def test_the_option_can_be_given_at_the_call(engine: str) -> None:
    actor = Flaky.remote()
    assert skate.get(actor.call.options(retry_exceptions=True).remote()) == 3


def test_a_handle_that_was_passed_on_retries_too(engine: str) -> None:
    @skate.remote
    def use(actor: Any) -> int:
        return skate.get(actor.retried.remote())

    assert skate.get(use.remote(Flaky.remote())) == 3


def test_an_actor_retries_a_call_of_itself(engine: str) -> None:
    @skate.remote(max_task_retries=2)
    class Own(Base):
        @skate.method(retry_exceptions=True)
        async def retried(self) -> int:
            return self._try()

        async def start(self, me: Any) -> int:
            found: int = await me.retried.remote()
            return found

    actor = Own.remote()
    assert skate.get(actor.start.remote(actor)) == 3


@pytest.mark.parametrize("kind", [FlakyStream, AsyncFlakyStream])
def test_a_stream_goes_on_after_an_error(engine: str, kind: Any) -> None:
    actor = kind.remote(failures=1)
    assert [skate.get(ref) for ref in actor.items.remote()] == [0, 1, 2]


class LastThingOfAnAttempt:
    """Goes once the attempt's error has been told, and waits for the next attempt."""

    def __del__(self) -> None:
        loop = asyncio.get_running_loop()
        wait_until(lambda: bool(getattr(loop, "_ready", True)), timeout=1)


@skate.remote(max_task_retries=1)
class SlowToEndAnAttempt:
    def __init__(self) -> None:
        self._attempts = 0
        self._second = asyncio.Event()

    @skate.method(retry_exceptions=True)
    async def never_ends(self) -> None:
        self._attempts += 1
        held = LastThingOfAnAttempt()
        if self._attempts == 1:
            raise Passing
        del held
        self._second.set()
        await asyncio.Event().wait()

    async def second_attempt_runs(self) -> None:
        await self._second.wait()


def test_a_call_that_is_tried_again_can_be_cancelled(engine: str) -> None:
    actor = SlowToEndAnAttempt.remote()
    second = actor.second_attempt_runs.remote()
    call = actor.never_ends.remote()
    skate.get(second, timeout=20)
    skate.cancel(call)
    with pytest.raises(TaskCancelledError):
        skate.get(call, timeout=20)


def test_other_calls_run_meanwhile_and_all_are_answered(engine: str) -> None:
    actor = Flaky.remote(failures=3)
    refs = [actor.retried.options(max_task_retries=-1).remote() for _ in range(20)]
    assert sorted(skate.get(refs)) == list(range(4, 24))


@skate.remote
class Failing:
    def fail(self) -> None:
        raise ValueError("boom")

    def answer(self) -> int:
        return 1


@skate.remote
class FailingInLoop:
    async def fail(self) -> None:
        raise ValueError("boom")

    async def answer(self) -> int:
        return 1


@pytest.mark.differs(ray="retry_exceptions of a method is True or False")
@pytest.mark.parametrize("cls", [Failing, FailingInLoop])
@pytest.mark.usefixtures("engine")
def test_types_to_retry_after_may_be_the_callers_alone(
    cls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = cls.remote()
    skate.get(actor.answer.remote())  # its process was told where modules are
    (tmp_path / "callers_alone.py").write_text("class Mine(Exception):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = importlib.import_module("callers_alone").Mine
    call = actor.fail.options(max_task_retries=1, retry_exceptions=[mine])
    with pytest.raises(ValueError, match="boom"):
        skate.get(call.remote(), timeout=60)
    assert skate.get(actor.answer.remote(), timeout=60) == 1
