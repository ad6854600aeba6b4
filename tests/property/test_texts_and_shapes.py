"""Laws about what a user may write: any text is a name; a shape is made or refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import skate
from skate.util import state

pytest.importorskip("skate._core", reason="the limits are those of the core")

LARGEST = 1 << 20  # elements of an array that is really made


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    with skate.init("embedded", num_cpus=1):
        yield


@pytest.fixture
def nothing_is_left() -> None:
    """The session is the module's: do not look for leftovers between its tests."""


@skate.remote
def identity(x: Any) -> Any:
    return x


SIZES = st.one_of(
    st.integers(0, 3),
    st.sampled_from([-1, 2**31, 2**32, 2**32 + 1, 2**62, 2**63 - 1, 2**63, 2**64]),
)


@settings(deadline=None, max_examples=150)
@example([0, 2**63 - 1], "u1")
@given(st.lists(SIZES, max_size=66), st.sampled_from(["u1", "f8", "c16"]))
def test_an_array_is_born_in_the_store_exactly_if_numpy_makes_it(
    shape: list[int], dtype: str
) -> None:
    if all(size > 0 for size in shape) and LARGEST < math.prod(shape) < 2**58:
        return  # there may be room for it, or not
    try:
        wanted = np.empty(tuple(shape), dtype)
    except (ValueError, MemoryError, OverflowError):
        with pytest.raises((ValueError, MemoryError)):
            skate.empty(tuple(shape), dtype)
        return
    array = skate.empty(tuple(shape), dtype)
    assert (array.shape, array.dtype) == (wanted.shape, wanted.dtype)
    array.fill(3)
    got = skate.get(identity.remote(skate.put(array)))
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    assert (got == 3).all()


# Cut at any byte, within and between characters of one to four bytes.
TEXTS = st.text(
    st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=200
) | st.builds(
    lambda first, character, n: "x" * first + character * n,
    st.integers(0, 8),
    st.sampled_from(["é", "漢", "🙂", "e\u0301"]),
    st.integers(1, 150),
)


@settings(deadline=None, max_examples=100)
@given(TEXTS)
def test_any_text_may_be_the_name_of_a_task(name: str) -> None:
    assert skate.get(identity.options(name=name).remote(1)) == 1
    assert skate.summary() is not None
    names = [row["name"] for row in state.list_tasks(limit=10_000)]
    start = name.encode()[:30].decode(errors="ignore").replace("\0", "\ufffd")
    assert any(each.startswith(start) for each in names) or not start


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(TEXTS, st.integers(0, 9), max_size=8))
def test_any_text_may_be_the_name_of_an_argument(named: dict[str, int]) -> None:
    @skate.remote
    def sort(**kwargs: int) -> list[tuple[str, int]]:
        return sorted(kwargs.items())

    assert skate.get(sort.remote(**named)) == sorted(named.items())
