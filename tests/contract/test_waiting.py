from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import Counter, Signal, add, fail, identity, wait_for

import skate
from skate.exceptions import EngineError, GetTimeoutError

pytestmark = [pytest.mark.usefixtures("engine"), pytest.mark.core]


@skate.remote
def sleep_for(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


# get ------------------------------------------------------------------------------


def test_get_with_a_timeout_gives_up_and_the_task_goes_on() -> None:
    signal = Signal.remote()
    ref = wait_for.remote(signal, "late")
    before = time.monotonic()
    with pytest.raises(GetTimeoutError, match=r"go(es)? on"):
        skate.get(ref, timeout=0.05)
    assert time.monotonic() - before >= 0.05
    signal.set.remote()
    assert skate.get(ref, timeout=60) == "late"


def test_a_wait_that_is_longer_or_shorter_than_all_before_ends_as_it_must() -> None:
    # Engines may expect a wait to last as long as those before it did.
    for _ in range(10):
        assert skate.get(sleep_for.remote(0.005)) == 0.005
    signal = Signal.remote()
    late = wait_for.remote(signal, "late")
    with pytest.raises(GetTimeoutError):
        skate.get(late, timeout=0.003)
    with pytest.raises(GetTimeoutError):
        skate.get(late, timeout=0.05)
    assert skate.get(identity.remote("soon"), timeout=60) == "soon"
    signal.set.remote()
    assert skate.get(late, timeout=60) == "late"


def test_a_timeout_of_get_is_also_the_built_in_error() -> None:
    signal = Signal.remote()
    with pytest.raises(TimeoutError):
        skate.get([skate.put(1), wait_for.remote(signal)], timeout=0)
    signal.set.remote()


def test_get_raises_an_error_without_waiting_for_the_rest() -> None:
    signal = Signal.remote()
    refs = [wait_for.remote(signal), fail.remote(KeyError("first"))]
    with pytest.raises(KeyError, match="first"):
        skate.get(refs)
    signal.set.remote()


@pytest.mark.parametrize("value", [1, None, "ref", (), {}])
def test_get_of_what_is_not_a_ref_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="ObjectRef or a list of them"):
        skate.get(value)


def test_get_names_the_item_that_is_not_a_ref() -> None:
    with pytest.raises(TypeError, match="item 1 of the list is 5"):
        skate.get([skate.put(1), 5])  # type: ignore[list-item]


def test_get_of_an_actor_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="ActorHandle"):
        skate.get(Counter.remote())  # type: ignore[call-overload]


@skate.remote
def look(refs: list[skate.ObjectRef[Any]]) -> int:
    return len(skate.wait(refs, num_returns=len(refs), timeout=0)[0])


@skate.remote
def look_in_turn(refs: list[skate.ObjectRef[Any]]) -> int:
    return len(skate.as_completed(refs).next_batch(timeout=0))


@skate.remote
def look_again(refs: list[skate.ObjectRef[Any]]) -> int:
    local = skate.put(0)
    skate.wait([*refs, local], num_returns=1)  # whose values are asked for
    identity.remote(refs[0])
    return len(skate.wait(refs, num_returns=len(refs), timeout=0)[0])


@skate.remote
def get_at_once(refs: list[skate.ObjectRef[Any]]) -> list[Any]:
    return skate.get(refs, timeout=0)


def test_a_task_that_only_looks_sees_the_values_that_are_there() -> None:
    result = identity.remote(7)
    skate.get(result)
    for refs in ([result], [skate.put(7), result]):
        assert skate.get(look.remote(refs)) == len(refs)
        assert skate.get(look_again.remote(refs)) == len(refs)
        assert skate.get(look_in_turn.remote(refs)) > 0
        assert skate.get(get_at_once.remote(refs)) == [7] * len(refs)
    signal = Signal.remote()
    late = wait_for.remote(signal)
    for _ in range(3):
        assert skate.get(look.remote([late])) == 0
        assert skate.get(look_in_turn.remote([late])) == 0
    skate.get(signal.set.remote())
    skate.get(late)
    assert skate.get(look.remote([late])) == 1


@pytest.mark.parametrize("timeout", [float("inf"), 10**400], ids=["inf", "huge"])
def test_a_timeout_of_any_length_is_one(timeout: float) -> None:
    ref = skate.put(1)
    assert skate.get(ref, timeout=timeout) == 1
    assert skate.wait([ref], timeout=timeout) == ([ref], [])
    assert list(skate.as_completed([ref], timeout=timeout)) == [ref]


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_negative_timeout_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="zero or more seconds"):
        skate.get(skate.put(1), timeout=timeout)


# wait -----------------------------------------------------------------------------


def test_wait_returns_what_is_ready_and_the_rest_in_order() -> None:
    signal = Signal.remote()
    slow = [wait_for.remote(signal, i) for i in range(2)]
    quick = [skate.put(i) for i in range(2)]
    refs = [slow[0], quick[0], slow[1], quick[1]]
    assert skate.wait(refs, num_returns=2) == (quick, slow)
    signal.set.remote()
    assert skate.wait(refs, num_returns=4) == (refs, [])


def test_wait_returns_no_more_than_it_was_asked_for(engine: str) -> None:
    refs = [skate.put(i) for i in range(3)]
    (ready,), others = skate.wait(refs)
    assert others == [ref for ref in refs if ref != ready]
    if engine != "ray":  # which hears of one before the others, any one
        assert ready == refs[0]


def test_wait_with_a_timeout_returns_fewer() -> None:
    signal = Signal.remote()
    slow, quick = wait_for.remote(signal), skate.put(1)
    assert skate.wait([slow, quick], num_returns=2, timeout=0.01) == ([quick], [slow])
    assert skate.wait([slow], timeout=0) == ([], [slow])
    signal.set.remote()


def test_a_loop_that_polls_sees_the_end_of_a_task() -> None:
    ref = add.remote(1, 1)
    while not skate.wait([ref], timeout=0)[0]:
        pass
    assert skate.get(ref, timeout=0) == 2


def test_wait_counts_errors_as_ready() -> None:
    refs = [fail.remote(ValueError())]
    assert skate.wait(refs) == (refs, [])


def test_wait_of_nothing_returns_at_once() -> None:
    assert skate.wait([]) == ([], [])


@pytest.mark.parametrize("refs", [1, (), None, {}])
def test_wait_takes_lists_only(refs: Any) -> None:
    with pytest.raises(TypeError, match="list of ObjectRefs"):
        skate.wait(refs)


def test_wait_refuses_a_single_ref() -> None:
    with pytest.raises(TypeError, match="list of ObjectRefs"):
        skate.wait(skate.put(1))  # type: ignore[arg-type]


def test_wait_refuses_what_is_not_a_ref() -> None:
    with pytest.raises(TypeError, match="item 0"):
        skate.wait([1])  # type: ignore[list-item]


def test_wait_refuses_a_ref_that_is_there_twice() -> None:
    ref = skate.put(1)
    with pytest.raises(ValueError, match="distinct"):
        skate.wait([ref, ref])


def test_wait_looks_again_at_a_list_that_has_changed() -> None:
    refs: list[Any] = [skate.put(1), skate.put(2)]
    for _ in range(2):
        assert len(skate.wait(refs)[0]) == 1
    refs[1] = refs[0]
    with pytest.raises(ValueError, match="distinct"):
        skate.wait(refs)
    refs[0] = 1
    with pytest.raises(TypeError, match="item 0"):
        skate.wait(refs)


@pytest.mark.parametrize("num_returns", [0, -1, 2])
def test_wait_refuses_a_number_out_of_range(num_returns: int) -> None:
    with pytest.raises(ValueError, match="num_returns must be from 1"):
        skate.wait([skate.put(1)], num_returns=num_returns)


# as_completed ---------------------------------------------------------------------


def test_as_completed_yields_refs_as_they_finish() -> None:
    first, second = Signal.remote(), Signal.remote()
    refs = [wait_for.remote(second, "b"), wait_for.remote(first, "a"), skate.put("c")]
    seen = []
    for ref in skate.as_completed(refs):
        seen.append(skate.get(ref))
        (first if len(seen) == 1 else second).set.remote()
    assert seen == ["c", "a", "b"]


def test_as_completed_yields_failed_tasks_too() -> None:
    (ref,) = skate.as_completed([fail.remote(ValueError("no"))])
    with pytest.raises(ValueError, match="no"):
        skate.get(ref)


def test_as_completed_takes_any_iterable_and_gives_each_once() -> None:
    refs = {add.remote(i, 0) for i in range(500)}
    values = [skate.get(ref) for ref in skate.as_completed(iter(refs))]
    assert sorted(values) == list(range(500))


def test_as_completed_of_nothing_ends() -> None:
    assert list(skate.as_completed([])) == []


def test_as_completed_gives_up_after_its_timeout() -> None:
    signal = Signal.remote()
    iterator = skate.as_completed([wait_for.remote(signal), skate.put(1)], timeout=0.05)
    assert skate.get(next(iterator)) == 1
    with pytest.raises(GetTimeoutError, match="1 of 2 refs"):
        next(iterator)
    signal.set.remote()


def test_as_completed_refuses_what_is_not_a_ref_before_the_first_item() -> None:
    with pytest.raises(TypeError, match="item 1 is 'x'"):
        skate.as_completed([skate.put(1), "x"])  # type: ignore[list-item]


def test_refs_may_be_added_while_others_are_awaited() -> None:
    finished = skate.as_completed([add.remote(0, 0)])
    sums = []
    for ref in finished:
        sums.append(skate.get(ref))
        if len(sums) < 5:
            finished.add(add.remote(sums[-1], 1))
    assert sums == [0, 1, 2, 3, 4]
    assert len(finished) == 0
    finished.add(add.remote(5, 5))
    assert skate.get(next(finished)) == 10
    with pytest.raises(TypeError, match="takes ObjectRefs; not 7"):
        finished.add(7)  # type: ignore[type-var]


def test_a_batch_is_all_that_is_ready() -> None:
    signal = Signal.remote()
    late = wait_for.remote(signal, "late")
    finished = skate.as_completed([late, skate.put(1), skate.put(2)])
    assert sorted(map(skate.get, finished.next_batch())) == [1, 2]
    assert finished.next_batch(timeout=0.01) == []
    signal.set.remote()
    assert finished.next_batch() == [late]
    assert finished.next_batch() == []
    finished.add(skate.put(3))
    finished.close()
    assert list(finished) == []


def test_streams_are_ready_when_their_next_item_is() -> None:
    signal = Signal.remote()

    @skate.remote
    def letters(first: str) -> Iterator[str]:
        yield first
        skate.get(signal.wait.remote())
        yield first.upper()

    streams = {"a": letters.remote("a"), "b": letters.remote("b")}
    finished = skate.as_completed(streams.values())
    seen = []
    for stream in finished:
        ref = next(stream, None)
        if ref is not None:
            seen.append(skate.get(ref))
            finished.add(stream)
        if len(seen) == 2:
            signal.set.remote()
    assert sorted(seen[:2]) == ["a", "b"]
    assert sorted(seen[2:]) == ["A", "B"]


def test_a_ref_of_an_ended_session_makes_as_completed_miss_no_other(
    engine: str, start: Callable[..., Any]
) -> None:
    old = skate.put(0)
    skate.shutdown()
    start(num_cpus=2)
    finished = skate.as_completed([add.remote(1, 0), old, add.remote(2, 0)])
    for _ in range(2):
        with pytest.raises(EngineError):
            next(finished)
    finished = skate.as_completed([add.remote(1, 0), add.remote(2, 0)])
    assert skate.get(next(finished)) in (1, 2)
    with pytest.raises(EngineError):
        finished.add(old)
    assert len(list(finished)) == 1


def test_a_stream_of_an_ended_session_starts_no_session(engine: str) -> None:
    @skate.remote
    def numbers() -> Iterator[int]:
        yield 1

    stream = numbers.remote()
    finished = skate.as_completed([add.remote(1, 0)])
    next(finished)
    skate.shutdown()
    with pytest.raises(EngineError):
        finished.add(stream)
    assert not skate.is_initialized()


# map_unordered --------------------------------------------------------------------


def test_map_unordered_yields_every_value() -> None:
    assert sorted(skate.map_unordered(identity, range(200))) == list(range(200))


def test_map_unordered_takes_items_only_as_room_comes_free() -> None:
    taken = 0

    def items() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = skate.map_unordered(identity, items(), max_in_flight=3)
    for _ in range(10):
        next(results)
    assert taken <= 13


def test_map_unordered_works_with_the_method_of_an_actor() -> None:
    counter = Counter.remote()
    assert sorted(skate.map_unordered(counter.add, [1, 1, 1])) == [1, 2, 3]


def test_map_unordered_raises_the_error_of_a_task() -> None:
    with pytest.raises(ValueError, match="bad item"):
        list(skate.map_unordered(fail, [ValueError("bad item")]))


def test_map_unordered_resolves_refs_among_the_items() -> None:
    assert list(skate.map_unordered(identity, [skate.put(7)])) == [7]


def test_map_unordered_may_be_left_early() -> None:
    results = skate.map_unordered(identity, range(100))
    next(results)
    del results


@pytest.mark.parametrize("max_in_flight", [0, -1, 1.5])
def test_map_unordered_refuses_a_bad_limit(max_in_flight: Any) -> None:
    with pytest.raises(ValueError, match="max_in_flight"):
        skate.map_unordered(identity, [1], max_in_flight=max_in_flight)


def test_map_unordered_refuses_an_ordinary_function() -> None:
    with pytest.raises(TypeError, match="Decorate it"):
        skate.map_unordered(len, [1])  # type: ignore[arg-type]


def test_each_ref_comes_to_one_of_the_threads_that_iterate() -> None:
    ready = skate.as_completed([identity.remote(i) for i in range(50)])
    found: list[int] = []

    def read() -> None:
        found.extend(skate.get(ref) for ref in ready)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert sorted(found) == list(range(50))
    ready.add(identity.remote(50))  # it goes on if more are added
    assert [skate.get(ref) for ref in ready] == [50]


def test_another_thread_may_add_while_the_first_wait_begins() -> None:
    some = skate.put(-1)
    ready = skate.as_completed([some] * 2000)
    begun, ended, added = threading.Event(), threading.Event(), 0

    def add() -> None:
        nonlocal added
        while not ended.is_set():
            ready.add(some)
            added += 1
            begun.set()

    thread = threading.Thread(target=add)
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        thread.start()
        assert begun.wait(60)
        found = [next(ready)]
    finally:
        ended.set()
        thread.join()
        sys.setswitchinterval(switch_s)
    found += ready
    assert len(found) == 2000 + added
