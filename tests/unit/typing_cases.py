"""What a type checker must know. Checked by mypy in test_typing.py, never run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typing_extensions import assert_type

import skate
from skate import ActorClass, ActorHandle, ObjectRef


@skate.remote
def double(x: int) -> float:
    return 2.0 * x


@skate.remote(num_cpus=2)
def text(x: int) -> str:
    return str(x)


@skate.remote(num_returns=2)
def pair() -> tuple[int, int]:
    return 1, 2


@skate.remote(num_returns=0)
def nothing() -> int:
    return 1


class Plain:
    def add(self, n: int) -> int:
        return n


# Called, not as a decorator: mypy does not let a decorator change what a class is.
Counter = skate.remote(Plain)
Other = skate.remote(num_cpus=1)(Plain)


assert_type(double.remote(1), ObjectRef[float])
assert_type(skate.get(double.remote(1)), float)
assert_type(skate.get(double.remote(skate.put(1))), float)
assert_type(skate.get([double.remote(1)]), list[float])
assert_type(skate.get(text.remote(1), timeout=1.0), str)
assert_type(skate.get(text.options(num_cpus=1).remote(1)), str)
assert_type(pair.remote(), list[ObjectRef[Any]])
assert_type(double.options(num_returns=3).remote(1), list[ObjectRef[Any]])
assert_type(nothing.remote(), None)
assert_type(skate.put("x"), ObjectRef[str])
assert_type(
    skate.wait([double.remote(1)]),
    tuple[list[ObjectRef[float]], list[ObjectRef[float]]],
)
assert_type(next(skate.as_completed([double.remote(1)])), ObjectRef[float])
assert_type(skate.map_unordered(double, [1, 2]), Iterator[float])
assert_type(double.remote(1).future().result(), float)


async def awaited() -> None:
    assert_type(await double.remote(1), float)


plain = skate.remote(len)
assert_type(skate.get(plain.remote([1])), int)
assert_type(Counter, ActorClass[Plain])
assert_type(Counter.remote(), ActorHandle[Plain])
assert_type(Other.options(num_cpus=0).remote(), ActorHandle[Plain])

skate.get(1)  # type: ignore[call-overload]
skate.wait(double.remote(1))  # type: ignore[arg-type]
