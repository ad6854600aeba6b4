"""The array kernels: the C++ core and the NumPy fallback agree."""

from __future__ import annotations

import numpy as np
import pytest

from skate import kernels

FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
CASES = [(dtype, op) for dtype in FLOATS for op in kernels.OPS] + [
    (dtype, op) for dtype in INTEGERS for op in kernels.OPS if op != "mean"
]


def random_bits(dtype: str, count: int, n_arrays: int) -> list[np.ndarray]:
    """Every bit pattern may come: denormals, infinities and NaNs included."""
    rng = np.random.default_rng(0)
    size = count * np.dtype(dtype).itemsize
    raw = rng.integers(0, 256, size=(n_arrays, size), dtype=np.uint8)
    return [row.view(dtype) for row in raw]


@pytest.mark.skipif(kernels._reduce_into is None, reason="the core is not built")
@pytest.mark.parametrize(("dtype", "op"), CASES)
def test_core_and_fallback_agree_on_every_dtype_and_op(dtype: str, op: str) -> None:
    for n_arrays in (1, 2, 5):
        arrays = random_bits(dtype, 3001, n_arrays)
        expected = np.empty_like(arrays[0])
        kernels._reduce_numpy(arrays, op, expected)
        np.testing.assert_array_equal(kernels.reduce(arrays, op), expected)


def test_strided_and_unaligned_arrays_are_reduced_too() -> None:
    strided = np.arange(20.0)[::2]
    unaligned = np.frombuffer(b"x" + np.arange(10.0).tobytes(), dtype="f8", offset=1)
    total = kernels.reduce([strided, unaligned])
    np.testing.assert_array_equal(total, 3 * np.arange(10.0))


def test_out_may_be_one_of_the_arrays() -> None:
    a, b, c = (np.full((2, 3), value) for value in (1.0, 2.0, 4.0))
    assert kernels.reduce([a, b, c], out=b) is b
    assert (b == 7.0).all()
    assert (a == 1.0).all()


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("native", [False, True])
def test_arrays_whose_memory_is_written_to_are_reduced_as_they_were(
    native: bool, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(kernels, "_reduce_into", None)
    memory = np.arange(10_001, dtype="f4")
    more = np.arange(10_001, dtype="f4")
    arrays = [memory[:-1], more[1:]]
    expected = arrays[0] + arrays[1]
    outs = [memory[1:], more[:-1]] if several else memory[1:]
    result = kernels.reduce(arrays, out=outs)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(more[:-1] if several else memory[1:], expected)


def test_float16_accumulates_in_float32() -> None:
    arrays = [np.array([60000.0], np.float16)] * 4
    assert kernels.reduce(arrays, "mean")[0] == np.float16(60000.0)


def test_mean_of_integers_is_refused() -> None:
    with pytest.raises(TypeError, match="mean of int64 would have to be rounded"):
        kernels.reduce([np.arange(3)], "mean")


def test_dtypes_that_are_not_real_numbers_are_refused() -> None:
    for dtype in ("bool", "complex128", "S3", "O", ">f4"):
        with pytest.raises(TypeError, match="use float16, bfloat16, float32, float64"):
            kernels.reduce([np.zeros(3, dtype)])


def test_arrays_that_differ_are_refused() -> None:
    for other in (np.zeros(4), np.zeros(3, np.float32)):
        with pytest.raises(ValueError, match="shapes and dtypes must be the same"):
            kernels.reduce([np.zeros(3), other])
    with pytest.raises(ValueError, match="shapes and dtypes must be the same"):
        kernels.reduce([np.zeros(3)], out=np.zeros((3, 1)))


def test_nothing_to_reduce_is_refused() -> None:
    with pytest.raises(ValueError, match="pass at least one"):
        kernels.reduce([])


def test_unknown_op_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown op 'prod': use one of sum, mean"):
        kernels.reduce([np.zeros(3)], "prod")


def test_out_that_cannot_be_written_in_place_is_refused() -> None:
    with pytest.raises(ValueError, match="out must be C-contiguous and writable"):
        kernels.reduce([np.zeros(3)], out=np.zeros(6)[::2])


def bits_of(values: list[float]) -> np.ndarray:
    """As bfloat16: exact for what has few bits."""
    upper = np.array(values, np.float32).view(np.uint32) >> 16
    return upper.astype(np.uint16).view(kernels.BFLOAT16)


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_reduced_in_float32(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(kernels, "_reduce_into", None)
    arrays = [bits_of([1, 256, float("inf")]), bits_of([2, 1, float("nan")])]
    total = kernels.reduce(arrays)
    assert kernels.name_of(total.dtype) == "bfloat16"
    as_float = (total.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    assert as_float[:2].tolist() == [3, 256]  # 257 is between two, and 256 is even
    assert np.isnan(as_float[2])
    with pytest.raises(ValueError, match="bfloat16"):
        kernels.reduce([arrays[0], np.zeros(4)])


def test_several_outs_are_all_written() -> None:
    outs = [np.zeros(3), np.zeros(3)]
    result = kernels.reduce([np.ones(3), outs[1] + 1], "sum", out=outs)
    assert result is outs[0]
    assert outs[1].tolist() == outs[0].tolist() == [2, 2, 2]
