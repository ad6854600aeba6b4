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


def _native_reduce() -> Callable[[Array, list[Array], str], None] | None:
    try:
        from ._core import reduce_into
    except ImportError:  # installed without the core
        return None
    return reduce_into


_reduce_into = _native_reduce()


def reduce(
    arrays: Sequence[Array], op: str = "sum", *, out: Array | None = None
) -> Array:
    """The elementwise reduction of ``arrays``, in their order; one pass over memory.

    float16 accumulates in float32; integers wrap; max and min propagate NaN.

    Args:
        arrays: at least one; all of one shape and one dtype, of real numbers.
        op: ``"sum"``, ``"mean"`` (floating dtypes only), ``"max"`` or ``"min"``.
        out: where to write, C-contiguous; may be one of ``arrays``. Default: a new one.

    Raises:
        TypeError: the dtype is not numeric, or integers have no exact mean.
        ValueError: shapes or dtypes differ, there is no array, or ``op`` is unknown.
    """
    if not arrays:
        raise ValueError("there is no array to reduce: pass at least one.")
    first = arrays[0]
    _check_op(op, first.dtype)
    if out is None:
        out = np.empty(first.shape, first.dtype)
    elif not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("out must be C-contiguous and writable.")
    for array in (*arrays, out):
        if array.shape != first.shape or array.dtype != first.dtype:
            raise ValueError(
                f"cannot reduce {array.dtype} {array.shape} with {first.dtype} "
                f"{first.shape}: shapes and dtypes must be the same."
            )
    if _reduce_into is None:
        _reduce_numpy(arrays, op, out)
    else:
        ready = [np.require(array, requirements=("C", "A")) for array in arrays]
        _reduce_into(out, ready, op)
    return out


def _check_op(op: str, dtype: np.dtype[Any]) -> None:
    if op not in OPS:
        raise ValueError(f"unknown op {op!r}: use one of {', '.join(OPS)}.")
    if dtype.kind not in "fiu" or dtype.itemsize > 8 or not dtype.isnative:
        raise TypeError(
            f"cannot reduce {dtype}: use float16, float32, float64 or an integer dtype."
        )
    if op == "mean" and dtype.kind != "f":
        raise TypeError(
            f"the mean of {dtype} would have to be rounded: use op='sum', or cast the "
            "array to a floating dtype first."
        )


def _reduce_numpy(arrays: Sequence[Array], op: str, out: Array) -> None:
    fold = {"max": np.maximum, "min": np.minimum}.get(op, np.add)
    wide = np.dtype(np.float32) if out.dtype == np.float16 else out.dtype
    total = arrays[0].astype(wide)
    with np.errstate(all="ignore"):
        for array in arrays[1:]:
            fold(total, array, out=total, dtype=wide)
        if op == "mean":
            total /= len(arrays)
        out[...] = total
