"""The choice between gloo and NCCL, which needs no GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from skate.exceptions import EngineError

torch = pytest.importorskip("torch")
pytest.importorskip("ray", reason="Ray is not installed")
backends: Any = pytest.importorskip("skate.engine.ray.backends")


class OnGpu:
    """What a tensor on a GPU tells of itself."""

    device = torch.device("cuda", 0)

    def __init__(self, is_dense: bool = True) -> None:
        self.dense = self if is_dense else OnGpu()
        self.copied: Any = None

    def contiguous(self) -> OnGpu:
        return self.dense

    def copy_(self, other: Any) -> None:
        self.copied = other


@pytest.mark.parametrize("x", [np.zeros(3), torch.zeros(3)], ids=["array", "tensor"])
def test_what_is_on_a_cpu_goes_by_gloo(x: Any) -> None:
    assert backends.backend_of(x) == "gloo"
    array = backends.as_array(x)
    array[0] = 5
    assert x[0] == 5  # the same memory


def test_what_is_on_a_gpu_goes_by_nccl() -> None:
    assert backends.backend_of(OnGpu()) == "nccl"


def test_other_devices_are_refused_with_advice() -> None:
    with pytest.raises(EngineError, match=r"not on 'meta'\. Move it to the CPU"):
        backends.backend_of(torch.zeros(3, device="meta"))


class Work:
    def __init__(self, log: list[Any]) -> None:
        self.wait = lambda: log.append("waited")


class Connected:
    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def allreduce(self, tensors: list[Any], options: Any) -> Work:
        self.log.append(("allreduce", tensors, options.reduceOp))
        return Work(self.log)

    def broadcast(self, tensors: list[Any], options: Any) -> Work:
        self.log.append(("broadcast", tensors, options.rootRank))
        return Work(self.log)

    def abort(self) -> None:
        self.log.append("aborted")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What NCCL is asked to do, where torch has it."""
    real = backends._distributed()
    log: list[Any] = []

    def connect(store: Any, rank: int, world_size: int, options: Any) -> Connected:
        log.append(("connect", store, rank, world_size))
        return Connected(log)

    connect.Options = lambda: None  # type: ignore[attr-defined]
    fake = SimpleNamespace(
        is_nccl_available=lambda: True,
        PrefixStore=lambda prefix, store: (prefix, store),
        ProcessGroupNCCL=connect,
        AllreduceOptions=real.AllreduceOptions,
        BroadcastOptions=real.BroadcastOptions,
        ReduceOp=real.ReduceOp,
    )
    monkeypatch.setattr(backends, "_distributed", lambda: fake)
    return log


def test_ranks_connect_when_the_first_tensor_comes(made: list[Any]) -> None:
    gpus = backends.Nccl("store", 1, 2)
    assert made == []
    x = OnGpu()
    gpus.allreduce(x, "mean", lambda work: made.append("until done"))
    gpus.broadcast(x, 1, lambda work: made.append("until done"))
    mean = backends._distributed().ReduceOp.AVG
    assert made == [
        ("connect", ("nccl", "store"), 1, 2),
        ("allreduce", [x], mean),
        "until done",
        "waited",
        ("broadcast", [x], 1),
        "until done",
        "waited",
    ]
    gpus.abort()
    assert made[-1] == "aborted"


def test_a_tensor_with_gaps_is_copied_back(made: list[Any]) -> None:
    x = OnGpu(is_dense=False)
    backends.Nccl("store", 0, 2).allreduce(x, "sum", lambda work: None)
    assert x.copied is x.dense


def test_a_torch_without_nccl_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(
        is_nccl_available=lambda: False,
        AllreduceOptions=backends._distributed().AllreduceOptions,
        ReduceOp=backends._distributed().ReduceOp,
    )
    monkeypatch.setattr(backends, "_distributed", lambda: fake)
    with pytest.raises(EngineError, match="install a CUDA build"):
        backends.Nccl("store", 0, 2).allreduce(OnGpu(), "sum", lambda work: None)
