"""Array kernels from the C++ core, with NumPy fallbacks where it was not built.

Both give the same result for every dtype, so engines without the core agree with the
embedded one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# Any: a kernel keeps whatever dtype it is given.
Array = npt.NDArray[Any]

OPS = ("sum", "mean", "max", "min")

#: NumPy has no bfloat16: an array of this dtype holds their bits.
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])


#: What can be reduced; and BFLOAT16.
NUMBERS = frozenset(
    np.dtype(name)
    for name in (
        *("float16", "float32", "float64", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64"),
    )
)


def name_of(dtype: np.dtype[Any]) -> str:
    """What tells ``dtype`` from any other: ``float32``, ``bfloat16``, ``>f4``."""
    if dtype == BFLOAT16:
        return "bfloat16"
    if dtype.names is not None:
        return str(dtype)
    name: str = dtype.name if dtype.isnative else dtype.str
    return name


def _native_reduce() -> Callable[[list[Array], list[Array], str, bool], None] | None:
    try:
        from ._core import reduce_into
    except ImportError:  # installed without the core
        return None
    return reduce_into


_reduce_into = _native_reduce()


def reduce(
    arrays: Sequence[Array],
    op: str = "sum",
    *,
    out: Array | Sequence[Array] | None = None,
) -> Array:
    """The elementwise reduction of ``arrays``, in their order; one pass over memory.

    float16 and bfloat16 accumulate in float32; integers wrap; NaN stays NaN in max and
    min.

    Args:
        arrays: at least one; all of one shape and one dtype, of real numbers.
        op: ``"sum"``, ``"mean"`` (floating dtypes only), ``"max"`` or ``"min"``.
        out: where to write, C-contiguous. Default: a new one. Or a list of such, all of
            which are written. They may be of the memory of ``arrays``: what is
            there is reduced as it was.

    Returns:
        Where it was written; the first, of several.

    Raises:
        TypeError: the dtype is not numeric, or integers have no exact mean.
        ValueError: shapes or dtypes differ, there is no array, or ``op`` is unknown.
    """
    if not arrays:
        raise ValueError("there is no array to reduce: pass at least one.")
    first = arrays[0]
    check_op(op, first.dtype)
    if out is None:
        outs = [np.empty(first.shape, first.dtype)]
    else:
        outs = [out] if isinstance(out, np.ndarray) else list(out)
        for one in outs:
            if not (one.flags.c_contiguous and one.flags.writeable):
                raise ValueError("out must be C-contiguous and writable.")
    for array in (*arrays, *outs):
        if array.shape != first.shape or array.dtype != first.dtype:
            raise ValueError(
                f"cannot reduce {name_of(array.dtype)} {array.shape} with "
                f"{name_of(first.dtype)} "
                f"{first.shape}: shapes and dtypes must be the same."
            )
    if _reduce_into is None:
        _reduce_numpy(arrays, op, outs[0])
        for one in outs[1:]:
            one[...] = outs[0]
        return outs[0]
    ready = [np.require(array, requirements=("C", "A")) for array in arrays]
    if out is not None:
        ready = [
            array.copy() if any(_overlaps(array, one) for one in outs) else array
            for array in ready
        ]
    bfloat16 = first.dtype == BFLOAT16
    if bfloat16:
        ready = [array.view(np.uint16) for array in ready]
        outs = [one.view(np.uint16) for one in outs]
    _reduce_into(outs, ready, op, bfloat16)
    return outs[0].view(BFLOAT16) if bfloat16 else outs[0]


def _overlaps(array: Array, out: Array) -> bool:
    """Whether what is written to ``out`` may be read from ``array`` later.

    Not where both are at one place: each element is read before it is written.
    """
    if not np.may_share_memory(array, out):
        return False
    places = [one.__array_interface__["data"][0] for one in (array, out)]
    return bool(places[0] != places[1])


def check_op(op: str, dtype: np.dtype[Any]) -> None:
    """Raise what ``reduce`` would."""
    if op not in OPS:
        raise ValueError(f"unknown op {op!r}: use one of {', '.join(OPS)}.")
    if dtype == BFLOAT16:
        return
    if dtype not in NUMBERS:
        raise TypeError(
            f"cannot reduce {name_of(dtype)}: use float16, bfloat16, float32, float64 "
            "or an integer dtype, of this machine's byte order."
        )
    if op == "mean" and dtype.kind != "f":
        raise TypeError(
            f"the mean of {dtype} would have to be rounded: use op='sum', or cast the "
            "array to a floating dtype first."
        )


def _reduce_numpy(arrays: Sequence[Array], op: str, out: Array) -> None:
    if out.dtype == BFLOAT16:
        wide_out = np.empty(out.shape, np.float32)
        _reduce_numpy([_widen(array) for array in arrays], op, wide_out)
        out.view(np.uint16)[...] = _narrow(wide_out)
        return
    fold = {"max": np.maximum, "min": np.minimum}.get(op, np.add)
    wide = np.dtype(np.float32) if out.dtype == np.float16 else out.dtype
    total = arrays[0].astype(wide)
    with np.errstate(all="ignore"):
        for array in arrays[1:]:
            fold(total, array, out=total, dtype=wide)
        if op == "mean":
            total /= len(arrays)
        out[...] = total


def _widen(array: Array) -> Array:
    """bfloat16 as float32: the upper half of its bits."""
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _narrow(array: Array) -> Array:
    """The bits of the nearest bfloat16, even ones on a tie; NaN stays NaN."""
    bits = array.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40
    return np.where(np.isnan(array), quiet, rounded).astype(np.uint16)
