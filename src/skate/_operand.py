"""Arrays of any library as collectives take them: NumPy views of their memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from .kernels import BFLOAT16

Array = npt.NDArray[Any]


class Operand:
    """One array of a call, as a contiguous NumPy array over its memory, or a copy.

    Args:
        x: a NumPy array, a torch CPU tensor, or what exports DLPack in CPU memory.
        writable: whether the call writes to it.

    Raises:
        TypeError: it is none of these, or read-only where it is written to.
    """

    def __init__(self, x: Any, *, writable: bool = True) -> None:
        self._view = _numpy(x)
        self._x = x
        if writable and not self._view.flags.writeable:
            raise TypeError(
                f"the array of shape {self._view.shape} is read-only, as values from "
                "skate.get are, and collectives work in place: pass numpy.array(x)."
            )
        self.array = self._view
        if not (self._view.flags.c_contiguous and self._view.flags.writeable):
            self.array = np.array(self._view, order="C")
        self.shape = self.array.shape

    def put_back(self) -> None:
        """Write the result to where the array is."""
        if self.array is not self._view:
            self._view[...] = self.array

    def keep_from(self, other: Array, *, but: Array) -> None:
        """Be a copy if its memory is a part of ``other``'s, unless it begins ``but``.

        Both are contiguous, so that what they span is what they have.
        """
        if np.may_share_memory(self.array, other) and not _begin_at_one(
            self.array, but
        ):
            self.array = self.array.copy()

    def keep(self) -> None:
        """Be a copy: what others write to its memory is not seen."""
        if self.array is self._view:
            self.array = self.array.copy()

    def like(self, shape: tuple[int, ...]) -> Any:
        """A new array of the same kind and dtype."""
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(self._x, torch.Tensor):
            return torch.empty(shape, dtype=self._x.dtype)
        if isinstance(self._x, np.ndarray):
            return np.empty(shape, self._x.dtype)
        return np.empty(shape, self.array.dtype)


def copied(x: Any, *, writable: bool = True) -> Operand:
    """The operand of a call that copies it."""
    operand = Operand(x, writable=writable)
    check_copied(operand.array.dtype)
    return operand


def check_copied(dtype: np.dtype[Any]) -> None:
    """Raise TypeError if its bytes alone are not the value."""
    if dtype.hasobject:
        raise TypeError(
            f"collectives cannot copy {dtype}, which holds Python objects: use a dtype "
            "of fixed size, or send the pickled object as bytes."
        )


def overlap(operands: Sequence[Operand]) -> bool:
    """Whether what is written back to one may be memory of another."""
    spans = sorted(_span(one._view) for one in operands if one._view.size)
    return any(end > start for (_, end), (start, _) in pairwise(spans))


def is_on_gpu(x: Any) -> bool:
    """True for a torch tensor that is not in CPU memory."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor) and x.device.type != "cpu"


def _span(array: Array) -> tuple[int, int]:
    """The addresses from its first byte to behind its last one."""
    low = high = array.__array_interface__["data"][0]
    if array.flags.forc:
        return low, low + array.nbytes
    for length, stride in zip(array.shape, array.strides, strict=True):
        low += min(0, (length - 1) * stride)
        high += max(0, (length - 1) * stride)
    return low, high + array.itemsize


def _begin_at_one(a: Array, b: Array) -> bool:
    first, second = (x.__array_interface__["data"][0] for x in (a, b))
    return bool(first == second)


def _numpy(x: Any) -> Array:
    if isinstance(x, np.ndarray):
        # Packages that add bfloat16 to NumPy call it so.
        return x.view(BFLOAT16) if x.dtype.name == "bfloat16" else x
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        if x.device.type != "cpu" or x.layout is not torch.strided:
            raise TypeError(
                f"collectives take dense tensors in CPU memory, not one of layout "
                f"{x.layout} on {x.device}: pass x.cpu(), or x.to_dense()."
            )
        x = x.detach()
        if x.dtype is torch.bfloat16:
            bits: Array = x.view(torch.int16).numpy()
            return bits.view(BFLOAT16)
        array: Array = x.numpy()
        return array
    if hasattr(x, "__dlpack__"):
        try:
            return np.from_dlpack(x)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(
                f"cannot see the memory of this {type(x).__name__} by DLPack: {error}. "
                "Pass a copy of it in CPU memory."
            ) from error
    raise TypeError(
        "collectives take NumPy arrays, torch CPU tensors, and arrays that export "
        f"DLPack, not {type(x).__name__}: pass numpy.asarray(x)."
    )
