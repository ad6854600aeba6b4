"""Which of torch.distributed's backends moves an array: gloo on CPUs, NCCL on GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...exceptions import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

GLOO, NCCL = "gloo", "nccl"


def backend_of(x: Any) -> str:
    """Chosen by where ``x`` is, a NumPy array or a torch tensor.

    Raises:
        EngineError: it is on a device that neither backend knows.
    """
    device = getattr(getattr(x, "device", None), "type", "cpu")  # NumPy's is a string
    if device == "cpu":
        return GLOO
    if device == "cuda":
        return NCCL
    raise EngineError(
        f"collective groups reduce arrays on CPUs and on CUDA devices, not on "
        f"{device!r}. Move it to the CPU first: x.cpu()."
    )


def as_array(x: Any) -> Any:
    """A NumPy view of ``x``, an array or a CPU tensor: the same memory."""
    return x.detach().numpy() if hasattr(x, "detach") else x


class Nccl:
    """The GPUs of a group's ranks, connected when the first tensor needs it."""

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self._where = store, rank, world_size
        self._connected: Any = None

    def _group(self) -> Any:
        if self._connected is None:
            dist = _distributed()
            if not dist.is_nccl_available():
                raise EngineError(
                    "a tensor on a GPU needs NCCL, and this torch was built without: "
                    "install a CUDA build of it, or move the tensor to the CPU."
                )
            store, rank, world_size = self._where
            options = dist.ProcessGroupNCCL.Options()
            self._connected = dist.ProcessGroupNCCL(
                dist.PrefixStore(NCCL, store), rank, world_size, options
            )
        return self._connected

    def allreduce(self, x: Any, op: str, until_done: Callable[[Any], None]) -> None:
        """In place, with the GPU's own sum, mean, max or min."""
        dist = _distributed()
        options = dist.AllreduceOptions()
        options.reduceOp = {
            "sum": dist.ReduceOp.SUM,
            "mean": dist.ReduceOp.AVG,
            "max": dist.ReduceOp.MAX,
            "min": dist.ReduceOp.MIN,
        }[op]
        self._do(lambda t: self._group().allreduce([t], options), x, until_done)

    def broadcast(self, x: Any, root: int, until_done: Callable[[Any], None]) -> None:
        """In place, from the rank ``root``."""
        dist = _distributed()
        options = dist.BroadcastOptions()
        options.rootRank = root
        self._do(lambda t: self._group().broadcast([t], options), x, until_done)

    @staticmethod
    def _do(
        start: Callable[[Any], Any], x: Any, until_done: Callable[[Any], None]
    ) -> None:
        dense = x.contiguous()
        work = start(dense)
        until_done(work)
        work.wait()  # what the current CUDA stream does next comes after it
        if dense is not x:
            x.copy_(dense)

    def abort(self) -> None:
        """Let go of ranks that wait for one that has died."""
        if self._connected is not None:
            self._connected.abort()


def _distributed() -> Any:  # its types do not know all of what it has
    import torch.distributed as dist

    return dist
