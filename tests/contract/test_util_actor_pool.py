from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

import pytest
from helpers import Signal

import skate
from skate.exceptions import ActorDiedError, TaskError
from skate.util import ActorPool

pytestmark = pytest.mark.usefixtures("engine")


@skate.remote
class Doubler:
    def double(self, x: int) -> int:
        return 2 * x

    def wait(self, signal: Any, value: Any) -> Any:
        skate.get(signal.wait.remote())
        return value

    def divide(self, x: int) -> float:
        return 1 / x

    @skate.method(num_returns=2)
    def both(self, x: int) -> tuple[int, int]:
        return x, -x

    def ask_dead(self, actor: Any) -> None:
        skate.get(actor.double.remote(1))

    def die(self) -> None:
        os._exit(1)


def double(actor: Any, x: int) -> Any:
    return actor.double.remote(x)


@pytest.fixture
def pool(engine: str) -> ActorPool:
    return ActorPool([Doubler.remote(), Doubler.remote()])


def test_map_gives_the_results_in_order(pool: ActorPool) -> None:
    assert list(pool.map(double, range(20))) == [2 * i for i in range(20)]
    assert list(pool.map(double, [])) == []


def test_map_unordered_gives_them_as_they_come(pool: ActorPool) -> None:
    signal = Signal.remote()

    def call(actor: Any, x: int) -> Any:
        return actor.wait.remote(signal, x) if x == 0 else actor.double.remote(x)

    results = pool.map_unordered(call, range(5))
    first = [next(results) for _ in range(4)]
    assert sorted(first) == [2, 4, 6, 8]
    signal.set.remote()
    assert list(results) == [0]


def test_map_forgets_results_that_nobody_asked_for(pool: ActorPool) -> None:
    for x in range(5):
        pool.submit(double, x)
    assert list(pool.map(double, [10, 20])) == [20, 40]
    assert list(pool.map_unordered(double, [10])) == [20]


def test_submitted_calls_are_returned_in_order_or_as_they_come(pool: ActorPool) -> None:
    assert not pool.has_next()
    for x in range(4):
        pool.submit(double, x)
    assert pool.has_next()
    assert [pool.get_next(), pool.get_next()] == [0, 2]
    assert {pool.get_next_unordered(), pool.get_next_unordered()} == {4, 6}
    assert not pool.has_next()
    for get in (pool.get_next, pool.get_next_unordered):
        with pytest.raises(StopIteration):
            get()


def test_a_timeout_leaves_the_result_for_later(pool: ActorPool) -> None:
    signal = Signal.remote()
    pool.submit(lambda actor, x: actor.wait.remote(signal, x), 7)
    for get in (pool.get_next, pool.get_next_unordered):
        with pytest.raises(TimeoutError, match=r"0\.01 s"):
            get(timeout=0.01)
    signal.set.remote()
    assert pool.get_next(timeout=60) == 7


@pytest.mark.parametrize("name", ["get_next", "get_next_unordered"])
def test_a_result_may_be_ignored_after_a_timeout(pool: ActorPool, name: str) -> None:
    signal = Signal.remote()
    pool.submit(lambda actor, x: actor.wait.remote(signal, x), 7)
    with pytest.raises(TimeoutError, match="ignored"):
        getattr(pool, name)(timeout=0.01, ignore_if_timedout=True)
    assert not pool.has_next()
    signal.set.remote()
    assert list(pool.map(double, [1, 2, 3])) == [2, 4, 6]


def test_calls_may_return_several_values(pool: ActorPool) -> None:
    for x in (1, 2):
        pool.submit(lambda actor, x: actor.both.remote(x), x)
    assert pool.get_next(timeout=60) == [1, -1]
    assert pool.get_next_unordered() == [2, -2]


def test_a_failed_call_leaves_its_actor_in_the_pool(pool: ActorPool) -> None:
    for x in (0, 1, 0, 2):
        pool.submit(lambda actor, x: actor.divide.remote(x), x)
    with pytest.raises(ZeroDivisionError):
        pool.get_next()
    assert pool.get_next() == 1
    with pytest.raises(ZeroDivisionError):
        pool.get_next()
    assert pool.get_next() == 0.5
    assert pool.has_free()


def test_a_call_that_meets_a_dead_actor_leaves_its_own_in_the_pool() -> None:
    dead = Doubler.remote()
    skate.kill(dead)
    pool = ActorPool([Doubler.remote()])
    pool.submit(lambda actor, x: actor.ask_dead.remote(x), dead)
    with pytest.raises(TaskError):
        pool.get_next()
    assert list(pool.map(double, [1])) == [2]


def test_a_dead_actor_leaves_the_pool() -> None:
    victim, other = Doubler.remote(), Doubler.remote()
    pool = ActorPool([other, victim])
    skate.kill(victim)
    for x in range(4):
        pool.submit(double, x)
    with pytest.raises(ActorDiedError):
        pool.get_next()
    assert [pool.get_next() for _ in range(3)] == [2, 4, 6]
    assert pool.pop_idle() == other
    assert pool.pop_idle() is None


def test_a_call_that_cannot_be_made_fails_in_its_turn(pool: ActorPool) -> None:
    values = [0, 1, 2, threading.Lock(), 4, 5]
    results = pool.map(lambda actor, v: actor.double.remote(v), values)
    got: list[Any] = []
    while pool.has_next():
        try:
            got.append(pool.get_next(timeout=60))
        except TypeError:
            got.append("failed")
    assert got == [0, 2, 4, "failed", 8, 10]
    assert list(results) == []


def test_a_pool_without_actors_says_so() -> None:
    pool = ActorPool([])
    pool.submit(double, 1)
    with pytest.raises(RuntimeError, match="push"):
        pool.get_next()
    pool.push(Doubler.remote())
    assert pool.get_next() == 2


def test_actors_may_be_added_and_taken_out(pool: ActorPool) -> None:
    actor = pool.pop_idle()
    assert actor is not None
    pool.push(actor)
    with pytest.raises(ValueError, match="already"):
        pool.push(actor)
    assert pool.has_free()
    signal = Signal.remote()
    for _ in range(2):
        pool.submit(lambda actor, x: actor.wait.remote(signal, x), 1)
    assert not pool.has_free()
    assert pool.pop_idle() is None
    with pytest.raises(ValueError, match="already"):
        pool.push(actor)
    signal.set.remote()
    assert [pool.get_next(), pool.get_next()] == [1, 1]


@pytest.mark.parametrize("answer", [3, [], "twice"])
def test_an_answer_that_is_no_ref_leaves_its_actor_free(answer: Any) -> None:
    def submitted(actor: Any, value: int) -> Any:
        return [actor.double.remote(value)] * 2 if answer == "twice" else answer

    pool = ActorPool([Doubler.remote()])
    pool.submit(submitted, 1)
    with contextlib.suppress(TypeError):
        assert pool.get_next() == ([] if answer == [] else [2, 2])
    assert pool.has_free()
    assert not pool.has_next()
