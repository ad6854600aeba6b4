from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import Signal, add, identity, wait_for
from polling import wait_until

import skate
from skate._runtime import statistics

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("engine")
OWNER_GONE = "is lost if the actor is killed (OwnerDiedError): it owns what it has put"


def test_arrays_come_back_equal_and_read_only() -> None:
    array = np.arange(1000.0).reshape(10, 100)
    for ref in (skate.put(array), identity.remote(array)):
        value = skate.get(ref)
        np.testing.assert_array_equal(value, array)
        with pytest.raises(ValueError, match="read-only"):
            value[0] = 1


def test_a_small_array_is_read_only_too() -> None:
    value = skate.get(identity.remote(np.arange(3)))
    with pytest.raises(ValueError, match="read-only"):
        value[0] = 1


def test_get_with_copy_gives_an_array_of_the_callers_own() -> None:
    ref = skate.put({"weights": np.zeros(1000)})
    mine = skate.get(ref, copy=True)["weights"]
    mine[:] = 1
    assert skate.get(ref)["weights"].sum() == 0


def test_put_takes_a_copy_of_an_ordinary_array() -> None:
    array = np.zeros(100_000)
    ref = skate.put(array)
    array[:] = 1
    assert skate.get(ref).sum() == 0


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(0),
        np.array(5.0),
        np.zeros((3, 0, 2), np.int8),
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.arange(20)[::2],
        np.arange(12, dtype=">i4"),
        np.array(["a", "bcd"]),
        np.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f8")]),
        np.array([None, {"a": 1}], dtype=object),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_of_every_kind_survive(array: np.ndarray) -> None:
    for value in (skate.get(skate.put(array)), skate.get(identity.remote(array))):
        np.testing.assert_array_equal(value, array)
        assert value.dtype == array.dtype


def test_arrays_keep_the_metadata_of_their_type() -> None:
    kind = np.dtype("f8", metadata={"unit": "m"})
    made = skate.empty(3, kind)
    made[:] = 1
    for array in (np.ones(3, kind), made):
        for value in (skate.get(skate.put(array)), skate.get(identity.remote(array))):
            np.testing.assert_array_equal(value, array)
            assert value.dtype.metadata == {"unit": "m"}


@skate.remote
def read_only(array: np.ndarray) -> bool:
    return not array.flags.writeable


def test_arrays_are_read_only_inside_tasks() -> None:
    array = np.zeros(10)
    assert skate.get(read_only.remote(array))
    assert skate.get(read_only.remote(skate.put(np.zeros(100_000))))
    assert array.flags.writeable


def test_an_array_outlives_the_ref_that_it_came_from() -> None:
    ref = skate.put(np.arange(100_000))
    array = skate.get(ref)
    del ref
    others = [skate.put(np.zeros(100_000)) for _ in range(4)]
    assert array.sum() == 4_999_950_000
    del others


# skate.empty ----------------------------------------------------------------------


def test_empty_gives_a_writable_array() -> None:
    array = skate.empty((3, 4), np.float32)
    array[:] = 2
    assert array.shape == (3, 4)
    assert array.dtype == np.float32
    assert array.sum() == 24


def test_empty_takes_an_integer_shape() -> None:
    assert skate.empty(5, "int64").shape == (5,)
    assert skate.empty(np.int64(5), "int64").shape == (5,)


def test_put_seals_an_array_that_was_born_in_the_store(engine: str) -> None:
    array = skate.empty(1000, np.float64)
    array[:] = 3
    ref = skate.put(array)
    if engine == "embedded":  # on inline it is an ordinary array, which put copies
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    np.testing.assert_array_equal(skate.get(ref), np.full(1000, 3.0))


@skate.remote
def filled(n: int, value: float) -> np.ndarray:
    array = skate.empty(n, np.float64)
    array[:] = value
    return array


def test_an_array_born_in_the_store_may_be_returned_and_passed() -> None:
    assert skate.get(filled.remote(1000, 2.0)).sum() == 2000
    array = skate.empty(1000, np.float64)
    array[:] = 1
    assert skate.get(identity.remote(array)).sum() == 1000


def test_an_array_stays_the_callers_when_the_call_is_refused() -> None:
    array = skate.empty(1000, np.float64)
    array[:] = 1
    with pytest.raises(TypeError):
        add.remote(array, [threading.Lock()])
    array += 1
    with pytest.raises(TypeError):
        add.remote(array, y=threading.Lock())
    array += 1
    assert skate.get(identity.remote(array)).sum() == 3000


@skate.remote
def share_memory(x: np.ndarray, y: np.ndarray) -> bool:
    return np.shares_memory(x, y)


def test_an_array_that_is_passed_twice_is_one(engine: str) -> None:
    array = skate.empty(1000, np.float64)
    array[:] = 1
    assert skate.get(add.remote(array, array)).sum() == 2000
    other = skate.empty(1000, np.float64)
    shared = skate.get(share_memory.remote(other, y=other))
    if engine == "embedded":
        assert shared
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize("shape", [-1, (2, -3), (1.5,)])
def test_empty_refuses_a_bad_shape(shape: Any) -> None:
    with pytest.raises(ValueError, match="shape must be"):
        skate.empty(shape, np.float32)


def test_empty_refuses_python_objects() -> None:
    with pytest.raises(TypeError, match="Python objects"):
        skate.empty(3, object)


# Reference counting ---------------------------------------------------------------


def big() -> np.ndarray:
    return np.zeros(200_000)


def test_put_uses_memory_until_the_last_ref_goes(
    baseline: Callable[[], bool],
) -> None:
    used = statistics()["store_bytes"]
    ref = skate.put(big())
    again = ref
    assert statistics()["store_bytes"] >= used + 1_600_000
    del ref
    assert skate.get(again).nbytes == 1_600_000
    del again
    assert baseline()


def test_a_result_that_nobody_wants_is_freed(
    baseline: Callable[[], bool],
) -> None:
    for _ in range(5):
        identity.remote(big())
    assert baseline()


def test_arguments_are_freed_when_the_task_has_ended(
    baseline: Callable[[], bool],
) -> None:
    assert skate.get(add.remote(skate.put(big()), 1))[0] == 1
    assert baseline()


def test_a_ref_in_a_container_lives_as_long_as_the_container(
    baseline: Callable[[], bool],
) -> None:
    container = skate.put({"inner": skate.put(big())})
    (inner,) = skate.get(container).values()
    del container
    assert skate.get(inner).nbytes == 1_600_000
    del inner
    assert baseline()


def test_a_ref_in_a_container_in_flight_is_kept_for_the_task(
    baseline: Callable[[], bool],
) -> None:
    signal = Signal.remote()
    result = size_of.remote(wait_for.remote(signal), [skate.put(big())])
    signal.set.remote()
    assert skate.get(result) == 1_600_000
    del result, signal
    assert baseline()


@skate.remote
def size_of(_: None, refs: list[skate.ObjectRef[np.ndarray]]) -> int:
    return skate.get(refs[0]).nbytes


def test_a_ref_in_a_closure_lives_as_long_as_the_function(
    baseline: Callable[[], bool],
) -> None:
    read = skate.remote(reader(skate.put(big())))
    assert skate.get([read.remote(), read.remote()]) == [1_600_000] * 2
    del read
    assert baseline()


def reader(ref: skate.ObjectRef[np.ndarray]) -> Callable[[], int]:
    return lambda: skate.get(ref).nbytes


@skate.remote
class Keeper:
    def __init__(self) -> None:
        self.kept: list[Any] = []

    def keep(self, refs: list[Any]) -> None:
        self.kept.extend(refs)

    def read(self) -> list[int]:
        return [skate.get(ref).nbytes for ref in self.kept]

    def drop(self) -> None:
        self.kept.clear()

    def make(self) -> list[Any]:
        return [skate.put(big())]

    def make_and_keep(self) -> list[Any]:
        self.kept.append(skate.put(big()))
        return self.kept

    def make_for(self, other: Any) -> None:
        skate.get(other.keep.remote([skate.put(big())]))

    def keep_nested(self) -> None:
        self.kept.append(skate.put([skate.put(big())]))

    def kept_refs(self) -> list[Any]:
        return self.kept


def test_an_actor_keeps_the_refs_in_its_state(
    baseline: Callable[[], bool],
) -> None:
    keeper = Keeper.remote()
    skate.get(keeper.keep.remote([skate.put(big())]))
    assert skate.get(keeper.read.remote()) == [1_600_000]
    skate.get(keeper.drop.remote())
    assert baseline()
    skate.kill(keeper)


@skate.remote
def lose_in_a_cycle(refs: list[Any]) -> None:
    cycle: list[Any] = [refs]
    cycle.append(cycle)


@pytest.mark.differs(
    inline="one process, which has the program's garbage",
    ray="a value stays until Python collects garbage of its own accord",
)
def test_an_idle_worker_collects_the_garbage_that_holds_values(
    baseline: Callable[[], bool],
) -> None:
    skate.get(lose_in_a_cycle.remote([skate.put(big())]))
    assert baseline()


@pytest.mark.parametrize("how", ["kill", "drop"])
def test_a_dead_actor_lets_go_of_the_refs_in_its_state(
    how: str, baseline: Callable[[], bool]
) -> None:
    keeper = Keeper.remote()
    skate.get(keeper.keep.remote([skate.put(big())]))
    if how == "kill":
        skate.kill(keeper)
    del keeper
    assert baseline()


@pytest.mark.differs(ray=OWNER_GONE)
def test_what_an_actor_gave_away_outlives_it(
    baseline: Callable[[], bool],
) -> None:
    keeper = Keeper.remote()
    (ref,) = skate.get(keeper.make.remote())
    skate.kill(keeper)
    assert skate.get(ref).nbytes == 1_600_000
    del ref, keeper
    assert baseline()


@pytest.mark.differs(ray=OWNER_GONE)
def test_what_an_actor_gave_away_and_kept_outlives_it(
    baseline: Callable[[], bool],
) -> None:
    keeper = Keeper.remote()
    (ref,) = skate.get(keeper.make_and_keep.remote())
    skate.kill(keeper)
    assert skate.get(ref).nbytes == 1_600_000
    del ref, keeper
    assert baseline()


@pytest.mark.differs(ray="what an actor owns is lost with it")
def test_what_an_actor_keeps_is_one_object_however_often_it_is_given_away(
    baseline: Callable[[], bool],
) -> None:
    keeper = Keeper.remote()
    skate.get(keeper.keep_nested.remote())
    lists = skate.get([keeper.kept_refs.remote() for _ in range(20)])
    assert len({ref for (ref,) in lists}) == 1
    skate.kill(keeper)
    for (ref,) in lists:
        (inner,) = skate.get(ref)
        assert skate.get(inner).nbytes == 1_600_000
    del lists, ref, inner, keeper
    assert baseline()


def test_an_actor_may_drop_what_it_gave_away_and_kept(
    baseline: Callable[[], bool],
) -> None:
    keeper = Keeper.remote()
    (ref,) = skate.get(keeper.make_and_keep.remote())
    assert skate.get(keeper.read.remote()) == [1_600_000]
    assert skate.get(read_all.remote([ref])) == [1_600_000]
    skate.get(keeper.drop.remote())
    assert skate.get(ref).nbytes == 1_600_000
    del ref
    assert baseline()
    (ref,) = skate.get(keeper.make_and_keep.remote())
    del ref
    assert skate.get(keeper.read.remote()) == [1_600_000]
    skate.get(keeper.drop.remote())
    assert baseline()


@pytest.mark.differs(ray="what an actor owns is lost with it, at once")
@pytest.mark.parametrize("read_first", [False, True])
def test_what_a_dead_actor_owned_is_freed_with_its_last_ref(
    read_first: bool, baseline: Callable[[], bool]
) -> None:
    maker, holder = Keeper.remote(), Keeper.remote()
    skate.get(maker.make_for.remote(holder))
    if read_first:
        assert skate.get(holder.read.remote()) == [1_600_000]
    skate.kill(maker)
    del maker
    assert statistics()["store_bytes"] >= 1_600_000
    skate.get(holder.drop.remote())
    assert baseline()


@skate.remote
def read_all(refs: list[Any]) -> list[int]:
    return [skate.get(ref).nbytes for ref in refs]


@pytest.mark.differs(ray="when its process next collects garbage")
def test_a_failed_task_lets_go_of_its_arguments(
    baseline: Callable[[], bool],
) -> None:
    with pytest.raises(TypeError):
        skate.get(add.remote(skate.put(big()), skate.put("text")))
    assert baseline()


def test_a_loop_over_large_results_stays_small() -> None:
    used = statistics()["store_bytes"]
    for _ in range(200):
        skate.get(filled.remote(125_000, 0.0))
    assert wait_until(lambda: statistics()["store_bytes"] < used + 20_000_000)


def test_refs_of_an_earlier_session_do_no_harm(start: Any) -> None:
    old = skate.put(1)
    skate.shutdown()
    start(num_cpus=1)
    del old
    assert skate.get(skate.put(2)) == 2
