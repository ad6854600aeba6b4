from __future__ import annotations

import functools
import pickle
import signal
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from skate.engine import serialize
from skate.exceptions import ActorDiedError, TaskError


def round_trip(value: Any) -> Any:
    header, buffers, refs = serialize.dumps(value)
    assert refs == []
    return serialize.loads(header, [bytes(buffer.raw()) for buffer in buffers])


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(plain)
def test_plain_values_survive(value: Any) -> None:
    assert round_trip(value) == value


dtypes = (
    nps.boolean_dtypes()
    | nps.integer_dtypes()
    | nps.floating_dtypes()
    | nps.complex_number_dtypes()
    | nps.unicode_string_dtypes()
)


@given(nps.arrays(dtypes, nps.array_shapes(min_dims=0, min_side=0)))
def test_arrays_survive_and_are_read_only(array: np.ndarray) -> None:
    value = round_trip({"array": array})["array"]
    np.testing.assert_array_equal(value, array)
    assert value.dtype == array.dtype
    assert not value.flags.writeable


def test_large_arrays_are_not_part_of_the_header() -> None:
    array = np.zeros(100_000)
    header, buffers, _ = serialize.dumps([array, array, array[::-1]])
    assert len(buffers) == 1  # once, though it is there twice; the third is a copy
    assert buffers[0].raw().nbytes == array.nbytes
    assert np.shares_memory(np.frombuffer(buffers[0].raw()), array)
    assert len(header) > array.nbytes


def test_what_is_in_main_goes_by_value() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("class Point:\n    x = 3", namespace)
    header, _, _ = serialize.dumps(namespace["Point"])
    assert serialize.loads(header).x == 3


def test_functions_of_modules_go_by_name_and_closures_by_value() -> None:
    by_name = serialize.dumps_function(round_trip, "f").header
    assert len(by_name) < 200
    assert serialize.loads(by_name) is round_trip
    n = 5
    by_value = serialize.dumps_function(lambda: n, "f").header
    assert serialize.loads(by_value)() == 5


class Model:
    def __init__(self) -> None:
        self.layers = [{"lock": threading.Lock()}]


class Recursive:
    def __init__(self) -> None:
        self.me = self
        self.lock = threading.Lock()


def make_default(lock: Any) -> Any:
    def f(x: Any = lock) -> None: ...

    return f


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (threading.Lock(), r"the value: it is a _thread.lock, which cannot be pickled"),
        (Model(), r"the value: layers\[0\]\['lock'\], a _thread.lock"),
        (Recursive(), "the value: lock, a _thread.lock"),
        ([1, (2, threading.Lock())], r"the value: \[1\]\[1\], a _thread.lock"),
        (make_default(threading.Lock()), "a default argument, a _thread.lock"),
        (Model().__init__, r"self\.layers\[0\]\['lock'\]"),
        ((x for x in ()), "Return a list of its items"),
    ],
    ids=["itself", "attribute", "recursive", "item", "default", "method", "generator"],
)
def test_the_part_that_cannot_be_pickled_is_named(value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        serialize.dumps(value)


class Slow:
    """A signal comes while this is pickled."""

    def __reduce__(self) -> Any:
        signal.raise_signal(signal.SIGALRM)
        return int, ()


class Caller:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, number: int, frame: object) -> None:
        self.on_signal(number, frame)

    def on_signal(self, number: int, frame: object) -> None:
        raise self.error


@pytest.mark.parametrize(
    "handler",
    [
        Caller(TimeoutError("late")),
        Caller(TypeError("late")).on_signal,
        functools.partial(Caller.on_signal, Caller(TimeoutError("late"))),
    ],
    ids=["object", "method", "partial"],
)
@pytest.mark.parametrize(
    "pickle_it",
    [
        lambda slow: serialize.dumps([slow]),
        lambda slow: serialize.dumps_function(lambda: slow, "a function"),
        lambda slow: serialize.find_culprit([slow]),
    ],
    ids=["value", "function", "looking for the culprit"],
)
def test_what_a_signals_handler_raises_is_not_taken_for_a_reducers(
    handler: Any, pickle_it: Any
) -> None:
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises((TimeoutError, TypeError), match=r"^late$"):
            pickle_it(Slow())
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("value", "num_returns", "expected"),
    [(5, 1, [5]), ((1, 2), 1, [(1, 2)]), (5, 0, []), (range(2), 2, [0, 1])],
)
def test_a_result_is_split_into_as_many_values_as_were_asked_for(
    value: Any, num_returns: int, expected: list[Any]
) -> None:
    assert serialize.split_returns(value, num_returns, "f") == expected


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_an_error_of_user_code_survives() -> None:
    data = serialize.dump_error(raised(KeyError("k")), "module.f")
    error = serialize.load_error(data)
    assert isinstance(error, KeyError)
    assert isinstance(error, TaskError)
    assert error.task_name == "module.f"
    assert "raise error" in error.remote_traceback
    assert serialize.load_error(data) is not error


def test_an_error_of_the_engine_is_given_back_as_it_is() -> None:
    data = serialize.dump_system_error(ActorDiedError("dead"))
    error = serialize.load_error(data)
    assert type(error) is ActorDiedError
    assert str(error) == "dead"


class BadLoadError(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} {b}")


class BadTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("error", [BadLoadError(1, 2), BadTextError()], ids=repr)
def test_an_awkward_exception_is_still_an_error(error: Exception) -> None:
    loaded = serialize.load_error(serialize.dump_error(raised(error), "module.f"))
    assert isinstance(loaded, TaskError)
    assert loaded.task_name == "module.f"
    assert pickle.loads(pickle.dumps(loaded)).task_name == "module.f"


def test_a_hop_through_another_task_adds_its_frames_once() -> None:
    first = serialize.load_error(
        serialize.dump_error(raised(ValueError("deep")), "module.inner")
    )
    second = serialize.load_error(serialize.dump_error(raised(first), "module.outer"))
    assert isinstance(second, ValueError)
    assert isinstance(second, TaskError)
    assert second.task_name == "module.inner"
    text = second.remote_traceback
    assert text.index("task module.inner") < text.index("module.outer")
    assert text.count("ValueError: deep") == 1
