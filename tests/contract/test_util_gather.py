from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from helpers import Signal, fail, identity, wait_for

import skate
from skate.exceptions import GetTimeoutError
from skate.util import as_completed, map_unordered

pytestmark = pytest.mark.usefixtures("engine")


def test_as_completed_yields_values_or_refs() -> None:
    refs = [identity.remote(i) for i in range(5)]
    assert sorted(as_completed(refs)) == [0, 1, 2, 3, 4]
    assert set(as_completed(refs, chunk_size=2, yield_obj_refs=True)) == set(refs)
    assert list(as_completed([])) == []


def test_what_has_ended_does_not_wait_for_the_rest_of_a_chunk() -> None:
    signal = Signal.remote()
    results = as_completed([wait_for.remote(signal, "late"), identity.remote("soon")])
    assert next(results) == "soon"
    signal.set.remote()
    assert next(results) == "late"


def test_an_error_is_raised_in_its_turn() -> None:
    with pytest.raises(OSError, match="gone"):
        list(as_completed([fail.remote(OSError("gone"))]))
    with pytest.raises(OSError, match="gone"):
        list(map_unordered(fail, [OSError("gone")]))


def test_map_unordered_calls_for_every_item() -> None:
    assert sorted(map_unordered(identity, range(300))) == list(range(300))
    some = map_unordered(identity, range(5), backpressure_size=None, chunk_size=1)
    assert sorted(some) == [0, 1, 2, 3, 4]
    refs = map_unordered(identity, [7], yield_obj_refs=True)
    assert skate.get(list(refs)) == [7]


def test_map_unordered_reads_no_further_than_its_limit() -> None:
    taken: list[int] = []

    def items() -> Any:
        for i in itertools.count():
            taken.append(i)
            yield i

    results = map_unordered(identity, items(), backpressure_size=3)
    assert [next(results) for _ in range(4)]
    assert len(taken) <= 7


def test_a_timeout_is_raised() -> None:
    signal = Signal.remote()
    with pytest.raises(GetTimeoutError):
        next(as_completed([wait_for.remote(signal)], timeout=0.01))
    calls = map_unordered(wait_for, [signal, signal], backpressure_size=1, timeout=0.01)
    with pytest.raises(GetTimeoutError):
        next(calls)
    signal.set.remote()


@skate.remote
class Slow:
    def work(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds


def test_the_timeout_of_map_unordered_is_for_each_value() -> None:
    slow = Slow.remote()
    skate.get(slow.work.remote(0))
    assert list(map_unordered(slow.work, [0.5] * 4, timeout=1.5)) == [0.5] * 4


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="chunk_size"):
        as_completed([], chunk_size=0)
    with pytest.raises(ValueError, match="chunk_size"):
        map_unordered(identity, [], chunk_size=0)
    with pytest.raises(ValueError, match="backpressure_size"):
        map_unordered(identity, [], backpressure_size=0)
