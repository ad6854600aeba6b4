from __future__ import annotations

from typing import Any

import pytest
from helpers import Signal, add, identity, wait_for

import skate

pytestmark = [pytest.mark.usefixtures("engine"), pytest.mark.core]


def test_a_task_returns_what_its_function_returns() -> None:
    assert skate.get(add.remote(1, y=2)) == 3


def test_a_list_of_refs_gives_values_in_its_order() -> None:
    assert skate.get([add.remote(i, i) for i in range(100)]) == list(range(0, 200, 2))


def test_an_empty_list_gives_an_empty_list() -> None:
    assert skate.get([]) == []


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(2**80), 1.5, "text \N{SNOWMAN}", b"bytes", (1, "a"), {1: [2]}],
    ids=repr,
)
def test_a_value_survives_the_way_there_and_back(value: object) -> None:
    assert skate.get(identity.remote(value)) == value
    assert skate.get(skate.put(value)) == value


def test_a_ref_in_the_arguments_is_replaced_by_its_value() -> None:
    ready = skate.put(20)
    assert skate.get(add.remote(ready, y=skate.put(1))) == 21


def test_a_ref_that_is_not_ready_holds_back_the_task() -> None:
    signal = Signal.remote()
    late = wait_for.remote(signal, 20)
    result = add.remote(late, y=1)
    assert skate.wait([result], timeout=0.01) == ([], [result])
    signal.set.remote()
    assert skate.get(result) == 21


def test_a_chain_of_dependent_tasks_runs_in_order() -> None:
    ref = skate.put(0)
    for _ in range(50):
        ref = add.remote(ref, 1)
    assert skate.get(ref) == 50


@skate.remote
def types_of(values: Any) -> list[str]:
    return [type(value).__name__ for value in values]


def test_refs_inside_containers_stay_refs() -> None:
    refs = [skate.put(1), skate.put(2)]
    assert skate.get(types_of.remote(refs)) == ["ObjectRef", "ObjectRef"]


@skate.remote
def total(refs: dict[str, list[skate.ObjectRef[int]]]) -> int:
    return sum(skate.get(refs["all"]))


def test_refs_inside_containers_can_be_read_by_the_task() -> None:
    refs = [add.remote(i, 0) for i in range(4)]
    assert skate.get(total.remote({"all": refs})) == 6


@skate.remote
def make_refs() -> list[skate.ObjectRef[int]]:
    return [skate.put(1), add.remote(1, 1)]


def test_refs_that_a_task_made_outlive_it() -> None:
    refs = skate.get(make_refs.remote())
    assert skate.get(refs) == [1, 2]


def test_a_ref_equals_itself_wherever_it_has_been() -> None:
    ref = skate.put(1)
    (returned,) = skate.get(identity.remote([ref]))
    assert returned == ref
    assert hash(returned) == hash(ref)
    assert returned.hex() == ref.hex()
    assert returned != skate.put(1)


@skate.remote(num_returns=3)
def three() -> tuple[int, int, int]:
    return 1, 2, 3


def test_num_returns_gives_one_ref_for_each_value() -> None:
    a, b, c = three.remote()
    assert skate.get([c, a, b]) == [3, 1, 2]


def test_num_returns_zero_gives_no_ref() -> None:
    assert identity.options(num_returns=0).remote(1) is None


def test_num_returns_one_keeps_a_tuple_together() -> None:
    assert skate.get(three.options(num_returns=1).remote()) == (1, 2, 3)


@skate.remote(num_returns=2)
def pair_of_items() -> Any:
    yield "first"
    yield "second"


def test_a_generator_gives_the_number_of_values_that_was_asked_for() -> None:
    assert skate.get(pair_of_items.remote()) == ["first", "second"]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [((1, 2), ValueError, "returned 2 values"), (5, TypeError, "not int")],
)
def test_a_wrong_number_of_values_is_an_error(
    value: object, error: type[Exception], message: str
) -> None:
    for ref in identity.options(num_returns=3).remote(value):
        with pytest.raises(error, match=message):
            skate.get(ref)


@skate.remote
def change(values: list[int]) -> list[int]:
    values.append(1)
    return values


def test_a_task_works_on_a_copy_of_its_arguments() -> None:
    values: list[int] = []
    assert skate.get(change.remote(values)) == [1]
    assert values == []


def test_arguments_are_copied_when_the_call_is_made() -> None:
    signal = Signal.remote()
    values = [0]
    result = add.remote(wait_for.remote(signal, []), values)
    values.append(1)
    signal.set.remote()
    assert skate.get(result) == [0]


def test_a_call_that_does_not_fit_the_function_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"helpers.add.*missing a required argument"):
        add.remote(1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        add.remote(1, 2, z=2)
    with pytest.raises(TypeError, match="too many positional"):
        add.remote(1, 2, 3)


@skate.remote
def who_am_i() -> tuple[Any, ...]:
    here = skate.get_runtime_context()
    return here.get_task_id(), here.get_actor_id(), here.get_task_name()


def test_the_runtime_context_tells_which_task_runs() -> None:
    first, second = skate.get([who_am_i.remote(), who_am_i.remote()])
    assert first[0] != second[0]
    assert first[1] is None
    assert first[2].endswith("who_am_i")


def test_a_task_may_be_given_a_name() -> None:
    assert skate.get(who_am_i.options(name="Ada").remote())[2] == "Ada"


def test_the_driver_has_no_task() -> None:
    here = skate.get_runtime_context()
    assert here.get_task_id() is here.get_actor_id() is here.get_worker_id() is None


def test_many_small_tasks_all_run_once() -> None:
    refs = [add.remote(i, 1) for i in range(2000)]
    assert skate.get(refs) == list(range(1, 2001))


def test_one_ref_may_be_asked_for_twice() -> None:
    ref = skate.put([1])
    first, second = skate.get([ref, ref])
    assert first == second == [1]
