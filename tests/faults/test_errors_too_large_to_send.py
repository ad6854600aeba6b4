"""What user code raises may hold more than the store has room for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

import skate
from skate.exceptions import TaskError

MIB = 1 << 20


class Large(Exception):
    def __init__(self, data: np.ndarray) -> None:
        super().__init__(data)

    def __str__(self) -> str:
        return "much"


@skate.remote(max_retries=0)
def task() -> None:
    raise Large(np.ones(100 * MIB, np.uint8))


@skate.remote
class Actor:
    def fail(self) -> None:
        raise Large(np.ones(100 * MIB, np.uint8))

    def answer(self) -> int:
        return 1


@skate.remote
class Loop:
    async def fail(self) -> None:
        raise Large(np.ones(100 * MIB, np.uint8))

    async def answer(self) -> int:
        return 1


@pytest.fixture
def _small_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SKATE_SPILL_DIR", "")
    with skate.init("embedded", num_cpus=1, object_store_memory=16 * MIB):
        yield


@pytest.mark.usefixtures("_small_store")
@pytest.mark.parametrize("cls", [None, Actor, Loop])
def test_an_error_that_does_not_fit_is_told_by_its_type_and_message(cls: Any) -> None:
    actor = None if cls is None else cls.remote()
    fail: Callable[[], Any] = task.remote if actor is None else actor.fail.remote
    with pytest.raises(TaskError, match="raised Large: much"):
        skate.get(fail(), timeout=60)
    if actor is not None:
        assert skate.get(actor.answer.remote(), timeout=60) == 1


@skate.remote(num_returns=50, max_retries=0)
def many() -> None:
    raise Large(np.ones(MIB, np.uint8))


@pytest.mark.usefixtures("_small_store")
def test_the_error_of_a_task_with_many_returns_takes_the_room_of_one() -> None:
    refs = many.remote()
    skate.wait(refs, num_returns=len(refs))
    assert skate.get(skate.put(np.ones(8 * MIB, np.uint8))).nbytes == 8 * MIB
    first = refs.pop(0)
    with pytest.raises(Large) as caught:
        skate.get(first)
    del first
    for ref in refs:
        with pytest.raises(Large) as caught:
            skate.get(ref)
    assert caught.value.args[0].nbytes == MIB
