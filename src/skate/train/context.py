"""What a training loop can ask about its rank, and tell: ``train.context()``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt

from skate.collective import Group

Metrics = Mapping[str, Any]
Array = npt.NDArray[Any]  # any dtype that the group can reduce

# In a context variable: on the inline engine, ranks are threads of one process.
_current: ContextVar[Context] = ContextVar("train_context")


class Context:
    """One rank of a training run. Get it with ``skate.train.context()``."""

    def __init__(
        self, group: Group, checkpoint: Any, post: Callable[[Metrics, Any], None]
    ) -> None:
        self._group = group
        self._post = post
        self.rank = group.rank
        self.world_size = group.world_size
        #: The last reported checkpoint, when the run was resumed or restarted.
        self.checkpoint = checkpoint

    def report(self, metrics: Metrics, checkpoint: Any = None) -> None:
        """Tell the driver how it goes; it keeps what rank 0 reports.

        Args:
            metrics: numbers, by name.
            checkpoint: any picklable value from which :attr:`checkpoint` lets the
                loop continue. Written to the run's ``checkpoint_dir``.
        """
        if self.rank == 0:
            self._post(metrics, checkpoint)

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """A writable array in the group's memory, which is reduced without a copy.

        Every rank must call it in the same order with the same arguments.
        """
        shape = (shape,) if isinstance(shape, int) else shape
        return self._group.empty(shape, np.dtype(dtype))

    def allreduce(
        self, x: Array, op: str = "sum", timeout: float | None = None
    ) -> Array:
        """Replace ``x`` on every rank by the reduction over all; returns ``x``.

        Args:
            x: C-contiguous; the same shape and dtype on every rank.
            op: ``"sum"``, ``"mean"``, ``"max"`` or ``"min"``.
            timeout: seconds to wait for the slowest rank; None waits for ever.

        Raises:
            ShapeMismatchError: shapes or dtypes differ; no array was changed.
            RankDiedError: a rank ended; the contents of ``x`` are undefined.
            CollectiveTimeoutError: a rank did not arrive; see ``.missing_ranks``.
        """
        return self._group.allreduce(x, op, timeout)

    def broadcast(self, x: Array, root: int = 0, timeout: float | None = None) -> Array:
        """Replace ``x`` on every rank by the one of rank ``root``; returns ``x``."""
        return self._group.broadcast(x, root, timeout)

    def barrier(self, timeout: float | None = None) -> None:
        """Return when every rank has called it."""
        self._group.barrier(timeout)


def context() -> Context:
    """The rank that runs this code.

    Raises:
        RuntimeError: called outside of a loop that ``skate.train.run`` runs.
    """
    found = _current.get(None)
    if found is None:
        raise RuntimeError(
            "train.context() was called outside of a training loop. Call it in the "
            "function that you pass to skate.train.run."
        )
    return found


def set_context(new: Context) -> None:
    _current.set(new)
