"""Warnings about code that works and is slower than it need be: once for each place."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from helpers import add, identity

import skate
from skate.exceptions import PerformanceAdvice

Given = list[warnings.WarningMessage]


@pytest.fixture
def given(
    engine_name: str,
    start: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Given]:
    """The advice that a session gives."""
    if engine_name != "embedded":
        pytest.skip("inline is not about speed; Ray gives advice of its own")
    monkeypatch.setenv("SKATE_ADVICE", "1")
    start(num_cpus=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def only(given: Given) -> warnings.WarningMessage:
    (advice,) = (w for w in given if w.category is PerformanceAdvice)
    assert advice.filename == __file__
    return advice


def line_of(function: Callable[..., Any], offset: int) -> int:
    return function.__code__.co_firstlineno + offset


def test_a_get_in_a_loop_over_remote(given: Given) -> None:
    def one_by_one() -> None:
        for i in range(1000):
            skate.get(add.remote(i, 1))

    one_by_one()
    one_by_one()
    advice = only(given)
    assert "nothing ran side by side" in str(advice.message)
    assert advice.lineno == line_of(one_by_one, 2)


def test_starting_all_and_then_getting_is_not_advised_against(given: Given) -> None:
    for _ in range(150):
        skate.get([add.remote(i, 1) for i in range(2)])
        first, second = add.remote(1, 1), add.remote(2, 2)
        skate.get(first)
        skate.get(second)
    assert given == []


def test_the_same_large_argument_by_value(given: Given) -> None:
    table = np.zeros(1 << 18)

    def pass_it() -> Any:
        return identity.remote(table)

    for _ in range(10):
        skate.wait([pass_it()])
    advice = only(given)
    assert "the same numpy.ndarray of 2.0 MiB" in str(advice.message)
    assert advice.lineno == line_of(pass_it, 1)


def test_different_large_arguments_are_fine(given: Given) -> None:
    for i in range(10):
        skate.wait([identity.remote(np.full(1 << 18, i))])
    ref = skate.put(np.zeros(1 << 18))
    for _ in range(10):
        skate.wait([identity.remote(ref)])
    assert given == []


def test_a_function_that_carries_much_data(given: Given) -> None:
    table = bytes(3 << 20)

    @skate.remote
    def size() -> int:
        return len(table)

    assert skate.get(size.remote()) == 3 << 20
    assert "carries 3.0 MiB with it" in str(only(given).message)


def test_a_blocking_get_in_an_async_method(
    given: Given, capfd: pytest.CaptureFixture[str]
) -> None:
    @skate.remote
    def slow() -> None:
        return

    @skate.remote
    class Async:
        async def blocks(self) -> None:
            for _ in range(5):
                skate.get(slow.remote())

        async def waits(self) -> None:
            await slow.remote()
            await asyncio.sleep(0)

    actor = Async.remote()
    skate.get(actor.waits.remote())
    skate.get(actor.blocks.remote())
    skate.shutdown()
    text = capfd.readouterr().err
    assert text.count("blocks the event loop of this async actor") == 1
    assert f"{__file__}:{line_of(Async.__wrapped__.blocks, 2)}" in text


def test_advice_can_be_turned_off(
    start: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKATE_ADVICE", "0")
    start(num_cpus=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(300):
            skate.get(add.remote(i, 1))
    assert caught == []
