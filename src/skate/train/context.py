"""What a training loop can ask about its rank, and tell: ``train.context()``."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skate.collective import Group

from .checkpoint import check_like
from .dataset import take
from .tree import Tree

Metrics = Mapping[str, Any]
Array = npt.NDArray[Any]  # any dtype that the group can reduce

# In a context variable: on the inline engine, ranks are threads of one process.
_current: ContextVar[Context] = ContextVar("train_context")


@dataclass(frozen=True)
class Report:
    """What rank 0 tells the driver."""

    metrics: dict[str, Any]
    checkpoint: Any = None
    samples: int = 0  # of this rank since its last report
    done: float | None = None  # the share of the run that is behind it


class Context:
    """One rank of a training run. Get it with ``skate.train.context()``.

    Attributes:
        rank: from 0 on.
        world_size: the number of ranks.
        checkpoint: the last reported one, when the run was resumed or restarted.
        seed: of this rank; the random state of ``random``, of numpy, and of torch if
            it is imported, begins from it.
        run_id: names this start of the ranks.
        hosts: handles of all ranks, if they serve shards of a parameter server.
    """

    def __init__(
        self,
        group: Group,
        checkpoint: Any,
        post: Callable[[Report], bool],
        *,
        run_id: str = "",
        seed: int = 0,
        hosts: Sequence[Any] = (),
        beat: Callable[[], None] | None = None,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._group = group
        self._post = post
        self._beat = beat
        #: Used as ``with context.waiting():`` while others are to blame for a delay.
        self.waiting = waiting
        self._stop = False
        #: Called when the loop has returned.
        self.at_end: list[Callable[[], None]] = []
        self._run_seed = seed
        self.rank = group.rank
        self.world_size = group.world_size
        self.checkpoint = checkpoint
        self.run_id = run_id
        self.hosts = hosts
        sequence = np.random.SeedSequence(seed, spawn_key=(self.rank,))
        self.seed = int(sequence.generate_state(1)[0])
        #: A generator of this rank's own: the same numbers on every engine.
        self.rng = np.random.default_rng(sequence)

    @property
    def group(self) -> Group:
        """The collective group of all ranks: all that ``skate.collective`` offers."""
        return self._group

    # reports -------------------------------------------------------------------------

    def report(
        self,
        metrics: Metrics,
        checkpoint: Any = None,
        *,
        samples: int = 0,
        done: float | None = None,
    ) -> None:
        """Tell the driver how it goes; it keeps what rank 0 reports.

        Args:
            metrics: numbers, by name.
            checkpoint: any picklable value from which :attr:`checkpoint` lets the
                loop continue. Copied at once, and written to the run's
                ``checkpoint_dir`` while training goes on.
            samples: that this rank has trained on since its last report, for the
                samples/s of the progress line.
            done: the share of the run that is behind, from 0 to 1, for the time left.
        """
        self.alive()
        if self.rank == 0:
            report = Report(dict(metrics), checkpoint, samples, done)
            self._stop = self._post(report)

    def should_stop(self) -> bool:
        """Whether the run has ended early: the metric no longer improves.

        Every rank must call it at the same point; all get the same answer.
        """
        flag = np.array([int(self._stop)], np.int64)
        return bool(self.allreduce(flag, op="max")[0])

    def alive(self) -> None:
        """Tell a run with a ``deadline`` that this rank does not hang.

        Every call of the context does so, too.
        """
        if self._beat is not None:
            self._beat()

    def resume(self, like: Tree = None) -> Any:
        """The checkpoint to go on from, or None at the beginning.

        Args:
            like: what it must be like, in names, shapes and dtypes.

        Raises:
            CheckpointError: it is of another model; says what differs.
        """
        if self.checkpoint is not None and like is not None:
            check_like(self.checkpoint, like)
        return self.checkpoint

    # data and randomness -------------------------------------------------------------

    def shard(self, dataset: Any, *, epoch: int = 0, shuffle: bool = False) -> Any:
        """This rank's part of ``dataset``: every rank has equally many rows.

        The rows that are left over are dropped; with ``shuffle`` others in each epoch.
        The order depends on the run's seed and the epoch alone, so that a resumed run
        sees what it would have seen.

        Args:
            dataset: an array or tensor; a dict or tuple of such, of equal length; or
                anything with ``len`` and ``[index]``.

        Raises:
            ValueError: there are fewer rows than ranks, or parts differ in length.
        """
        self.alive()
        return take(
            dataset,
            self.rank,
            self.world_size,
            seed=(self._run_seed, epoch) if shuffle else None,
        )

    def random_state(self) -> list[dict[str, Any]]:
        """The random state of all ranks, for a checkpoint. Every rank must call it.

        Of ``random``, numpy, :attr:`rng`, and torch on the CPU if it is imported.
        """
        state: dict[str, Any] = {
            "random": random.getstate(),
            "numpy": np.random.get_state(),  # noqa: NPY002  what users may rely on
            "rng": self.rng.bit_generator.state,
        }
        torch = sys.modules.get("torch")
        if torch is not None:
            state["torch"] = torch.get_rng_state().numpy()
        data = np.frombuffer(pickle.dumps(state), np.uint8)
        sizes = np.zeros(self.world_size, np.int64)
        sizes[self.rank] = data.size
        self.allreduce(sizes)
        table = np.zeros((self.world_size, int(sizes.max())), np.uint8)
        table[self.rank, : data.size] = data
        self.allreduce(table)
        return [
            pickle.loads(row[:size].tobytes())
            for row, size in zip(table, sizes, strict=True)
        ]

    def set_random_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from :meth:`random_state`; with another number of ranks, do nothing.

        Then there is no state to go on from, and each rank begins from its seed.
        """
        if len(states) != self.world_size:
            return
        state = states[self.rank]
        random.setstate(state["random"])
        np.random.set_state(state["numpy"])  # noqa: NPY002
        self.rng.bit_generator.state = state["rng"]
        if "torch" in state:
            import torch

            torch.set_rng_state(torch.from_numpy(np.array(state["torch"])))

    # collectives ---------------------------------------------------------------------

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
        self._group.allreduce(x, op, timeout)
        return x

    def broadcast(self, x: Array, root: int = 0, timeout: float | None = None) -> Array:
        """Replace ``x`` on every rank by the one of rank ``root``; returns ``x``."""
        self._group.broadcast(x, root, timeout)
        return x

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


def current_context() -> Context | None:
    """The rank that runs this code, or None."""
    return _current.get(None)


def set_context(new: Context) -> None:
    _current.set(new)
