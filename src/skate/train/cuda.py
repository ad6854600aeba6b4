"""Gradients from CUDA into the store's memory, on a stream of their own.

The memory is page-locked first, so that the copy engine can write to it while backward
goes on. Never run on a GPU so far: the order of calls is tested with a stand-in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

from .tree import Array


class Device(Protocol):
    """What is needed of CUDA; ``TorchDevice`` is the real one."""

    def lock(self, address: int, nbytes: int) -> None:
        """Page-lock host memory."""

    def unlock(self, address: int) -> None: ...

    def record(self) -> Any:
        """An event: what has been submitted for computing so far is done."""

    def copy_after(self, event: Any, tensor: Any, into: Array) -> None:
        """Start a copy on the side stream, once ``event`` has happened.

        Keeps the tensor's memory from being used again before it has been read.
        """

    def wait(self) -> None:
        """Return when all copies have ended."""


class SideCopier:
    """Copies tensors into host arrays while the device goes on computing.

    As a context it unlocks, at its end, the memory that it has locked.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._locked: dict[int, int] = {}  # address -> bytes
        self._copies = 0

    def lock(self, memory: Array) -> None:
        """Page-lock an array of the store, unless it is; its block is used again."""
        address, nbytes = memory.ctypes.data, memory.nbytes
        known = self._locked.get(address)
        if not nbytes or (known is not None and known >= nbytes):
            return
        if known is not None:  # a larger block is there now
            self._device.unlock(address)
        self._device.lock(address, nbytes)
        self._locked[address] = nbytes

    def copy(self, tensor: Any, into: Array) -> None:
        """Start to copy ``tensor``, which the device may still be computing."""
        self._device.copy_after(self._device.record(), tensor, into)
        self._copies += 1

    def wait(self) -> None:
        """Return when everything has been copied."""
        if self._copies:
            self._copies = 0
            self._device.wait()

    def close(self) -> None:
        self.wait()
        while self._locked:
            address, _ = self._locked.popitem()
            self._device.unlock(address)

    def __enter__(self) -> SideCopier:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class TorchDevice:
    """CUDA by way of torch: the current device, and one side stream."""

    def __init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise RuntimeError(why_not())
        self._torch = torch
        self._cuda: Any = torch.cuda  # typed in parts
        self._runtime = self._cuda.cudart()
        self._stream = self._cuda.Stream()

    def lock(self, address: int, nbytes: int) -> None:
        self._check(self._runtime.cudaHostRegister(address, nbytes, 0))

    def unlock(self, address: int) -> None:
        self._check(self._runtime.cudaHostUnregister(address))

    def record(self) -> Any:
        event = self._cuda.Event()
        event.record()
        return event

    def copy_after(self, event: Any, tensor: Any, into: Array) -> None:
        with self._on_side_stream():
            self._stream.wait_event(event)
            self._torch.from_numpy(into).copy_(tensor, non_blocking=True)
            tensor.record_stream(self._stream)

    def wait(self) -> None:
        self._stream.synchronize()

    @contextlib.contextmanager
    def _on_side_stream(self) -> Iterator[None]:
        with self._cuda.stream(self._stream), self._torch.no_grad():
            yield

    def _check(self, status: Any) -> None:
        if int(status) != 0:
            raise RuntimeError(
                f"CUDA could not page-lock memory of the store: error {int(status)}. "
                "A limit of locked memory (ulimit -l) may be too low."
            )


def why_not() -> str:
    """Why CUDA cannot be used here."""
    try:
        import torch
    except ImportError:
        return "torch is not installed: pip install 'skate[train]'"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    return f"torch {torch.__version__} finds no CUDA device"
