"""Whatever goes into the store comes out equal, of the same type, and read-only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import skate


@pytest.fixture(scope="module", params=["embedded", "inline"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "embedded":
        pytest.importorskip("skate._core", reason="skate's C++ core is not built")
    with skate.init(request.param, num_cpus=1):
        yield request.param


many = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(alphabet=st.characters(), max_size=3000)
    | st.binary(max_size=3000)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=5)
    ),
    max_leaves=20,
)
# In the machine's byte order, and no dates: NumPy's own pickles lose another order.
plain_dtypes = (
    hnp.boolean_dtypes()
    | hnp.integer_dtypes(endianness="=")
    | hnp.unsigned_integer_dtypes(endianness="=")
    | hnp.floating_dtypes(endianness="=")
    | hnp.complex_number_dtypes(endianness="=")
    | hnp.unicode_string_dtypes(endianness="=")
)
dtypes = plain_dtypes | hnp.array_dtypes(plain_dtypes)


@many
@given(value=values)
def test_plain_values_come_back_equal_and_of_the_same_type(
    engine: str, value: Any
) -> None:
    back = skate.get(skate.put(value))
    assert back == value
    assert repr(back) == repr(value)  # -0.0 and nested types too


@many
@given(
    array=dtypes.flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0))
    ),
    view=st.sampled_from(["as it is", "transposed", "strided", "fortran"]),
)
def test_arrays_come_back_equal(engine: str, array: np.ndarray, view: str) -> None:
    if view == "transposed":
        array = array.T
    elif view == "strided" and array.ndim:
        array = array[::2]
    elif view == "fortran":
        array = np.asfortranarray(array)
    back = skate.get(skate.put(array))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()  # bit for bit: NaNs, -0.0


@many
@given(data=st.data(), dtype=plain_dtypes)
def test_numpy_scalars_come_back_bit_for_bit(
    engine: str, data: st.DataObject, dtype: np.dtype
) -> None:
    scalar = data.draw(hnp.from_dtype(dtype)) if dtype.itemsize else dtype.type()
    scalar = dtype.type(scalar)
    alone, inside = skate.get(skate.put((scalar, {"of": [scalar], -1: scalar})))
    for back in (alone, *inside["of"], inside[-1]):
        assert type(back) is type(scalar)
        assert back.tobytes() == scalar.tobytes()


@many
@given(
    sizes=st.lists(st.integers(0, 40_000), min_size=1, max_size=6),
    nested=st.booleans(),
)
def test_values_on_both_sides_of_the_inline_limit_come_back(
    engine: str, sizes: list[int], nested: bool
) -> None:
    arrays: Any = [np.arange(n, dtype=np.uint8) for n in sizes]
    value = {"arrays": [arrays]} if nested else tuple(arrays)
    back = skate.get(skate.put(value))
    for array, original in zip(
        back["arrays"][0] if nested else back, arrays, strict=True
    ):
        np.testing.assert_array_equal(array, original)
        assert not array.flags.writeable
