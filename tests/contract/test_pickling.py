"""Functions, classes and tensors on their way to another process."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import identity

import skate

MAIN = textwrap.dedent(
    """
    import dataclasses, threading
    import numpy as np
    import skate

    FACTOR = 3
    lock = threading.Lock()  # never used by a task, so it must not be in the way

    @dataclasses.dataclass
    class Point:
        x: int

    def helper(x):
        return x * FACTOR

    @skate.remote
    def scale(point):
        return Point(helper(point.x))

    @skate.remote
    def factorial(n):
        return 1 if n == 0 else n * skate.get(factorial.remote(n - 1))

    class Base:
        def shift(self, x):
            return x + self.offset

    @skate.remote
    class Shift(Base):
        def __init__(self, offset):
            self.offset = offset

        def shift(self, x):
            return super().shift(x)

        def again(self, x):
            return skate.get(Shift.remote(1).shift.remote(x))

    class MyError(Exception):
        pass

    @skate.remote
    def fail():
        raise MyError("mine")

    point = skate.get(scale.remote(Point(2)))
    assert isinstance(point, Point) and point.x == 6, point
    assert skate.get(factorial.remote(5)) == 120
    assert skate.get(skate.remote(lambda x: x + FACTOR).remote(1)) == 4
    shift = Shift.remote(10)
    assert skate.get([shift.shift.remote(1), shift.again.remote(1)]) == [11, 2]
    assert isinstance(skate.get(skate.put(Point(1))), Point)
    assert skate.get(skate.put(Point)) is Point
    try:
        skate.get(fail.remote())
    except MyError as error:
        assert str(error) == "mine"
    else:
        raise AssertionError("no error")
    print("passed on", skate.init(ignore_reinit_error=True).engine)
    """
)


def test_what_a_value_holds_twice_is_one_thing_afterwards() -> None:
    shared: list[int] = [1]
    array = np.arange(3)
    value = {"a": shared, "b": ([shared], {"c": shared}), "x": array, "y": [array]}
    back = skate.get(skate.put(value), copy=True)
    back["a"].append(2)
    assert back["b"] == ([[1, 2]], {"c": [1, 2]})
    back["x"][0] = 5
    assert back["y"][0][0] == 5


def test_a_value_that_is_inside_itself_comes_back() -> None:
    value: dict[str, Any] = {"list": []}
    value["list"].append(value)
    back = skate.get(identity.remote(value))
    assert back["list"][0] is back


def test_a_tuple_that_is_met_very_often_is_written_once() -> None:
    value: Any = (1.5, "a")
    for _ in range(7):
        value = (value,) * 60  # 2.8 million million, if each were written out
    back = skate.get(identity.remote(value))
    for _ in range(7):
        assert len(back) == 60
        assert back[0] is back[59]
        back = back[0]
    assert back == (1.5, "a")


def test_a_value_nested_deeper_than_most_comes_back() -> None:
    value: Any = 1
    for _ in range(100):
        value = [value, {"in": (value,)}] if isinstance(value, int) else [value]
    assert skate.get(identity.remote(value)) == value


def test_functions_and_classes_of_a_script_work(engine_name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAIN],
        env={**os.environ, "SKATE_ENGINE": engine_name},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout == f"passed on {engine_name}\n", done.stderr
    assert done.returncode == 0


pytestmark = pytest.mark.usefixtures("engine")


def test_closures_and_lambdas_work() -> None:
    offset = 10

    @skate.remote
    def shift(x: int) -> int:
        return x + offset

    assert skate.get(shift.remote(1)) == 11
    assert skate.get(skate.remote(lambda x: x * offset).remote(2)) == 20


def test_builtins_and_partial_functions_work() -> None:
    assert skate.get(skate.remote(math.sqrt).remote(4.0)) == 2
    assert skate.get(skate.remote(functools.partial(pow, 2)).remote(5)) == 32


def test_a_local_class_may_be_an_actor() -> None:
    class Local:
        def name(self) -> str:
            return type(self).__name__

    assert skate.get(skate.remote(Local).remote().name.remote()) == "Local"


def test_a_function_may_travel_as_an_argument() -> None:
    apply = skate.remote(lambda f, x: f(x))
    assert skate.get(apply.remote(lambda x: x + 1, 1)) == 2


def test_remote_functions_and_actor_classes_may_be_passed_around() -> None:
    call = skate.remote(lambda f, x: skate.get(f.remote(x)))
    assert skate.get(call.remote(identity, 5)) == 5
    assert skate.get(call.remote(identity.options(num_cpus=0), 5)) == 5

    @skate.remote
    class Local:
        def one(self) -> int:
            return 1

    make = skate.remote(lambda cls: skate.get(cls.remote().one.remote()))
    assert skate.get(make.remote(Local)) == 1


def test_a_function_is_unpickled_once_and_keeps_its_own_state() -> None:
    calls: list[int] = []

    @skate.remote
    def remember(x: int) -> None:
        calls.append(x)

    skate.get([remember.remote(1), remember.remote(2)])
    assert calls == []


def test_a_remote_function_outlives_a_session(start: Any) -> None:
    assert skate.get(identity.remote(1)) == 1
    skate.shutdown()
    start(num_cpus=1)
    assert skate.get(identity.remote(2)) == 2


# Torch ----------------------------------------------------------------------------


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def test_tensors_survive(torch: Any) -> None:
    tensors = [
        torch.arange(6.0).reshape(2, 3),
        torch.arange(6.0).reshape(2, 3).t(),
        torch.tensor(5),
        torch.zeros(0, 3),
        torch.ones(4, dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.tensor([1 + 2j]).conj(),
        torch.eye(3).to_sparse(),
    ]
    for tensor in tensors:
        for value in (skate.get(skate.put(tensor)), skate.get(identity.remote(tensor))):
            assert value.dtype == tensor.dtype
            assert torch.equal(value.to_dense(), tensor.to_dense())


@pytest.mark.parametrize("length", [3, 100_000])
def test_a_write_into_a_tensor_changes_no_value(torch: Any, length: int) -> None:
    @skate.remote
    def ones() -> Any:
        return torch.ones(length)

    @skate.remote
    def doubled(tensor: Any) -> float:
        tensor *= 2  # torch knows no read-only memory
        return float(tensor.sum())

    for ref in (ones.remote(), skate.put(torch.ones(length))):
        mine, other = skate.get([ref, ref])
        mine += 1
        assert torch.equal(mine, torch.full((length,), 2.0))
        assert torch.equal(other, torch.ones(length))
        assert skate.get(doubled.remote(ref)) == 2 * length
        assert torch.equal(skate.get(ref), torch.ones(length))


@pytest.mark.differs(
    inline="tensors are copied when they are got",
    ray="tensors are copied when they are got",
)
def test_large_tensors_share_the_memory_of_the_store(torch: Any) -> None:
    kept = skate.get(skate.put({"a": torch.ones(100_000), "b": torch.zeros(100_000)}))
    ranges = [
        [int(address, 16) for address in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "/memfd:skate" in line
    ]
    for tensor in kept.values():
        assert any(low <= tensor.data_ptr() < high for low, high in ranges)


def test_tensors_keep_requires_grad_and_parameters_their_type(torch: Any) -> None:
    leaf = torch.ones(3, requires_grad=True)
    assert skate.get(skate.put(leaf)).requires_grad
    assert not skate.get(skate.put(leaf.detach())).requires_grad
    parameter = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    value = skate.get(skate.put(parameter))
    assert isinstance(value, torch.nn.Parameter)
    assert not value.requires_grad


def test_a_model_and_its_state_survive(torch: Any) -> None:
    model = torch.nn.Linear(3, 2)
    x = torch.ones(1, 3)
    again = skate.get(identity.remote(model))
    assert torch.equal(again(x), model(x))
    state = skate.get(identity.remote(model.state_dict()))
    assert torch.equal(state["weight"], model.weight)
