"""The order of CUDA calls, with a stand-in that runs what it is told to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from skate.train.cuda import SideCopier, TorchDevice, why_not


class Recorder:
    """Copies only when it is waited for, as a device may."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self._copies: list[tuple[Any, Any]] = []

    def lock(self, address: int, nbytes: int) -> None:
        self.calls.append(("lock", nbytes))

    def unlock(self, address: int) -> None:
        self.calls.append("unlock")

    def record(self) -> Any:
        self.calls.append("record")
        return len(self.calls)

    def copy_after(self, event: Any, tensor: Any, into: Any) -> None:
        self.calls.append(("copy after", event))
        self._copies.append((tensor, into))

    def wait(self) -> None:
        self.calls.append("wait")
        for tensor, into in self._copies:
            np.copyto(into, tensor)
        self._copies.clear()


def test_copies_follow_what_was_computed_and_are_waited_for_once() -> None:
    device = Recorder()
    memory = np.zeros(8, np.float32)
    with SideCopier(device) as copier:
        copier.lock(memory)
        copier.copy(np.ones(4), memory[:4])
        copier.copy(np.full(4, 2), memory[4:])
        assert not memory.any()
        copier.wait()
        copier.wait()
    assert memory.tolist() == [1] * 4 + [2] * 4
    assert device.calls == [
        ("lock", 32),
        "record",
        ("copy after", 2),
        "record",
        ("copy after", 4),
        "wait",
        "unlock",
    ]


def test_memory_that_is_used_again_is_locked_once() -> None:
    device = Recorder()
    memory = np.zeros(8, np.float32)
    with SideCopier(device) as copier:
        copier.lock(memory[:4])
        copier.lock(memory[:4])
        copier.lock(memory[:2])
        copier.lock(memory)  # a larger block at the same address
    assert device.calls == [("lock", 16), "unlock", ("lock", 32), "unlock"]


def test_without_cuda_it_says_why() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    with pytest.raises(RuntimeError, match="CUDA"):
        TorchDevice()
    assert "torch" in why_not()
