"""An actor that takes in its calls itself, and arrays that are lent to calls."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import skate
from skate.engine.actor_methods import ActorExit
from skate.exceptions import ActorDiedError, ActorUnavailableError, TaskError

pytestmark = pytest.mark.usefixtures("engine")


@skate.remote
class Pairs:
    """Answers two calls of ``pair`` at a time, the later one first."""

    def __init__(self) -> None:
        self.waiting: list[skate.ReceivedCall] = []
        self.idle_calls = 0

    def pair(self, x: Any, *, scale: int = 1) -> int: ...

    def soon(self) -> int: ...

    def wanted(self) -> list[bool]: ...

    @skate.receiver
    def receive(self, calls: Sequence[skate.ReceivedCall]) -> float | None:
        wait_s = None
        for call in calls:
            if call.method == "wanted":
                call.answer([one.wanted for one in self.waiting])
            elif call.method == "soon":
                self.soon_call = call
                wait_s = 0.001
            elif call.args[0] == "fail":
                call.fail(KeyError("no such thing"))
            elif call.args[0] == "raise":
                raise ValueError("the receiver itself")
            else:
                self.waiting.append(call)
        if not calls:
            self.idle_calls += 1
            self.soon_call.answer(self.idle_calls)
        if len(self.waiting) == 2:
            first, second = self.waiting
            self.waiting = []
            total = sum(
                one.args[0] * one.kwargs.get("scale", 1) for one in (first, second)
            )
            second.answer(total)
            first.answer(-total)
        return wait_s


@pytest.mark.differs(ray="a receiver gets overlapping calls in no fixed order")
def test_a_receiver_answers_calls_together_and_in_any_order() -> None:
    pairs = Pairs.remote()
    first = pairs.pair.remote(1)
    second = pairs.pair.remote(2, scale=10)
    assert skate.get([first, second]) == [-21, 21]


def test_a_receiver_is_called_again_when_it_wants_to_be() -> None:
    assert skate.get(Pairs.remote().soon.remote()) == 1


def test_what_a_receiver_raises_fails_the_calls_that_it_was_given() -> None:
    pairs = Pairs.remote()
    with pytest.raises(KeyError, match="no such thing"):
        skate.get(pairs.pair.remote("fail"))
    with pytest.raises(ValueError, match="the receiver itself"):
        skate.get(pairs.pair.remote("raise"))
    assert skate.get([pairs.pair.remote(1), pairs.pair.remote(2)]) == [-3, 3]


@pytest.mark.parametrize("wrong", ["soon", float("nan"), -1])
def test_a_receiver_that_returns_no_time_to_wait_is_told_so(wrong: Any) -> None:
    @skate.remote
    class Returns:
        def ask(self, wait_s: Any) -> Any: ...

        @skate.receiver
        def receive(self, calls: Sequence[skate.ReceivedCall]) -> Any:
            (call,) = calls
            if call.args[0] is not None:
                return call.args[0]
            call.answer(7)
            return None

    actor = Returns.remote()
    with pytest.raises(ValueError, match=f"receiver returned {wrong!r}; it must"):
        skate.get(actor.ask.remote(wrong), timeout=20)
    assert skate.get(actor.ask.remote(None), timeout=20) == 7


@skate.remote(max_restarts=-1)
class Ends:
    """Exits in its receiver, or raises what is no Exception."""

    def __init__(self) -> None:
        self.kept: list[skate.ReceivedCall] = []

    def ask(self) -> int: ...

    def keep(self) -> None: ...

    def raises(self, what: Any) -> None: ...

    def exit_when_idle(self) -> None: ...

    @skate.receiver
    def receive(self, calls: Sequence[skate.ReceivedCall]) -> float | None:
        if not calls:
            sys.exit()
        wait_s = None
        for call in calls:
            if call.method == "ask":
                call.answer(len(self.kept))
            elif call.method == "raises":
                what = call.args[0]
                raise what if what is not None else ActorExit
            else:
                self.kept.append(call)
                wait_s = 0.001 if call.method == "exit_when_idle" else None
        return wait_s


@pytest.mark.parametrize("how", [SystemExit(), SystemExit(0), None], ids=repr)
def test_a_receiver_that_exits_ends_its_actor_for_good(how: Any) -> None:
    actor = Ends.remote()
    kept = actor.keep.remote()
    while skate.get(actor.ask.remote(), timeout=20) != 1:
        pass
    for ref in (actor.raises.remote(how), kept):
        with pytest.raises(ActorDiedError):
            skate.get(ref, timeout=20)
    with pytest.raises(ActorDiedError):
        skate.get(actor.ask.remote(), timeout=20)


def test_a_receiver_that_exits_without_a_call_ends_its_actor() -> None:
    actor = Ends.remote()
    with pytest.raises(ActorDiedError):
        skate.get(actor.exit_when_idle.remote(), timeout=20)
    with pytest.raises(ActorDiedError):
        skate.get(actor.ask.remote(), timeout=20)


@pytest.mark.differs(ray="an async actor that exits with a status is not restarted")
def test_an_actor_whose_receiver_exits_with_a_status_is_restarted() -> None:
    actor = Ends.remote()
    kept = actor.keep.remote()
    assert skate.get(actor.ask.remote(), timeout=20) == 1
    for ref in (actor.raises.remote(SystemExit(3)), kept):
        with pytest.raises(ActorUnavailableError):
            skate.get(ref, timeout=20)
    assert skate.get(actor.ask.remote(), timeout=20) == 0


@pytest.mark.differs(ray="Ray ends the task of a method that raises these")
@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt()])
def test_a_receiver_that_raises_no_exception_fails_its_calls(error: Any) -> None:
    actor = Ends.remote()
    with pytest.raises(TaskError, match=type(error).__name__):
        skate.get(actor.raises.remote(error), timeout=20)
    assert skate.get(actor.ask.remote(), timeout=20) == 0


@pytest.mark.differs(ray="an actor that exits fails what it has been given")
def test_a_receiver_gets_what_came_before_its_actor_is_told_to_end() -> None:
    actor = Ends.remote()
    assert skate.get(actor.ask.remote(), timeout=20) == 0
    kept, answer = actor.keep.remote(), actor.ask.remote()
    end = actor.__ray_terminate__.remote()
    assert skate.get(answer, timeout=20) == 1
    for ref in (end, kept):
        with pytest.raises(ActorDiedError):
            skate.get(ref, timeout=20)


def test_an_answer_that_cannot_be_pickled_is_an_error() -> None:
    @skate.remote
    class Wrong:
        def ask(self) -> Any: ...

        @skate.receiver
        def receive(self, calls: Sequence[skate.ReceivedCall]) -> None:
            for call in calls:
                call.answer(one for one in [1])

    with pytest.raises(TypeError, match="generator"):
        skate.get(Wrong.remote().ask.remote())


@pytest.mark.differs(ray="a receiver gets overlapping calls in no fixed order")
def test_a_receiver_knows_which_calls_were_cancelled() -> None:
    pairs = Pairs.remote()
    first = pairs.pair.remote(1)
    assert skate.get(pairs.wanted.remote()) == [True]
    skate.cancel(first)
    while skate.get(pairs.wanted.remote()) != [False]:
        pass
    second = pairs.pair.remote(2)
    assert skate.get(second) == 3


def test_a_class_has_one_receiver() -> None:
    with pytest.raises(TypeError, match=r"more than one @skate.receiver: a, b"):

        @skate.remote
        class _Two:
            @skate.receiver
            def a(self, calls: Any) -> None: ...

            @skate.receiver
            def b(self, calls: Any) -> None: ...


@skate.remote
class Sum:
    def total(self, x: np.ndarray) -> float:
        return float(x.sum())


def test_a_lent_array_stays_writable_and_each_call_sees_what_it_holds() -> None:
    adder = Sum.remote()
    states = skate.empty((40, 50), np.float32)
    for value in (1.0, 2.0, 3.0):
        states[:] = value
        assert skate.get(adder.total.remote(skate.lend(states))) == 2000 * value
    assert states.flags.writeable
    ordinary = np.ones(3000)
    assert skate.get(adder.total.remote(skate.lend(ordinary))) == 3000
    ordinary[0] = 2


@skate.remote
def look_of(x: np.ndarray) -> tuple[tuple[int, ...], str]:
    return x.shape, str(x.dtype)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of setting them
def test_a_lent_array_is_seen_as_it_is_now() -> None:
    array = skate.empty((40, 60), np.float32)
    assert skate.get(look_of.remote(skate.lend(array))) == ((40, 60), "float32")
    array.shape = (60, 40)
    assert skate.get(look_of.remote(skate.lend(array))) == ((60, 40), "float32")
    array.dtype = np.int32  # type: ignore[misc]
    assert skate.get(look_of.remote(skate.lend(array))) == ((60, 40), "int32")


def test_a_lent_array_can_still_be_put_for_good() -> None:
    states = skate.empty(1000, np.float64)
    states[:] = 1.0
    lent = skate.lend(states)
    kept = skate.put(states)
    del lent
    assert skate.get(Sum.remote().total.remote(kept)) == 1000


def test_only_arrays_are_lent() -> None:
    with pytest.raises(TypeError, match=r"skate\.put"):
        skate.lend([1, 2])  # type: ignore[arg-type]
