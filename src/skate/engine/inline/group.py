"""Collective groups: ranks meet, and the last to arrive does the work for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...exceptions import (
    CollectiveError,
    CollectiveTimeoutError,
    RankDiedError,
    ShapeMismatchError,
)
from .baton import Wait, context

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from .baton import Baton

    Work = Callable[[list[np.ndarray]], None]


@dataclass(eq=False)
class _Arrival:
    """A rank in a collective call."""

    call: tuple[Any, ...]  # must be equal on all ranks
    array: np.ndarray | None
    wait: Wait
    error: CollectiveError | None = None


class Meeting:
    """What the ranks of one group share. Its methods take the lock."""

    def __init__(self, baton: Baton, name: str, world_size: int) -> None:
        self.world_size = world_size
        self.name = name
        self._baton = baton
        self._actors: dict[int, int] = {}  # rank -> actor, or 0
        self._gone: set[int] = set()
        self._arrived: dict[int, _Arrival] = {}
        self._failure: CollectiveError | None = None

    @property
    def failed(self) -> bool:
        """A rank is gone, or was too late: nobody can join, or meet, any more."""
        return self._failure is not None

    def join(self, rank: int, world_size: int) -> None:
        """Take a place.

        Raises:
            ShapeMismatchError: the others gave another world size.
            ValueError: the rank is taken.
        """
        if world_size != self.world_size:
            raise ShapeMismatchError(
                f"group {self.name!r} has {self.world_size} ranks, but rank {rank} "
                f"wants to join with world_size={world_size!r}."
            )
        if rank in self._actors:
            raise ValueError(f"rank {rank} of group {self.name!r} is taken.")
        self._actors[rank] = context.get().actor_id

    def actor_died(self, actor_id: int) -> None:
        for rank, actor in list(self._actors.items()):
            if actor == actor_id:
                self.leave(rank, f"rank {rank} of group {self.name!r} died")

    def leave(self, rank: int, why: str) -> bool:
        """``rank`` takes part no more. True if it was the last."""
        with self._baton.lock:
            self._gone.add(rank)
            self._fail(RankDiedError(f"{why}.", rank))
            return len(self._gone) == len(self._actors)

    def _fail(self, error: CollectiveError) -> None:
        """The first failure ends the group: a rank that came cannot be called back."""
        if self._failure is None:
            self._failure = error
            self._fail_call(error)

    def _fail_call(self, error: CollectiveError) -> None:
        for arrival in self._arrived.values():
            arrival.error = _again(error)
        self._release()

    def _release(self) -> None:
        arrived, self._arrived = self._arrived, {}
        for rank in sorted(arrived):
            # Not before what is queued: ranks that only meet each other would keep
            # everything else from running.
            self._baton.give_turn(arrived[rank].wait)

    def meet(
        self,
        rank: int,
        call: tuple[Any, ...],
        array: np.ndarray | None,
        work: Work,
        timeout: float | None,
    ) -> None:
        """Wait until every rank has made the same ``call`` and ``work`` is done."""
        with self._baton.lock:
            if self._failure is not None:
                raise _again(self._failure)
            wait = Wait(
                lambda: (
                    f"{call[0]} of group {self.name!r} for ranks "
                    f"{list(self._missing())}"
                ),
                timeout=timeout,
            )
            arrival = self._arrived[rank] = _Arrival(call, array, wait)
            last = not self._missing()
            if last:
                self._finish(work)
        if not last:
            self._baton.block(wait)
            if not wait.done:
                self._time_out(rank, call, timeout)
        if arrival.error is not None:
            raise arrival.error

    def _missing(self) -> tuple[int, ...]:
        return tuple(r for r in range(self.world_size) if r not in self._arrived)

    def _finish(self, work: Work) -> None:
        calls = {rank: self._arrived[rank].call for rank in range(self.world_size)}
        if len(set(calls.values())) > 1:
            seen = "; ".join(f"rank {r}: {_describe(c)}" for r, c in calls.items())
            self._fail_call(
                ShapeMismatchError(
                    f"the ranks of group {self.name!r} made different calls; nothing "
                    f"was changed. {seen}."
                )
            )
            return
        arrays = [self._arrived[rank].array for rank in range(self.world_size)]
        work([array for array in arrays if array is not None])
        self._release()

    def _time_out(
        self, rank: int, call: tuple[Any, ...], timeout: float | None
    ) -> None:
        with self._baton.lock:
            missing = self._missing()
            self._fail(
                CollectiveTimeoutError(
                    f"rank {rank} of group {self.name!r} waited {timeout} s in "
                    f"{call[0]} for ranks {list(missing)}.",
                    missing,
                )
            )


def _again(error: CollectiveError) -> CollectiveError:
    """A new exception for each rank: raising one adds to its traceback."""
    return type(error)(*error.args)


def _describe(call: tuple[Any, ...]) -> str:
    name, *details = call
    return f"{name}({', '.join(map(str, details))})"


class InlineGroup:
    """A rank's end of a group; see ``engine.protocol.Group``."""

    def __init__(
        self, meeting: Meeting, rank: int, forget: Callable[[Meeting], None]
    ) -> None:
        self.rank = rank
        self.world_size = meeting.world_size
        self._meeting = meeting
        self._forget = forget
        self._closed = False

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        import numpy as np

        return np.empty(shape, dtype)

    def allreduce(
        self, x: np.ndarray, op: str = "sum", timeout: float | None = None
    ) -> np.ndarray:
        from ... import kernels

        def reduce(arrays: list[np.ndarray]) -> None:
            total = kernels.reduce(arrays, op)
            for array in arrays:
                array[...] = total

        kernels.reduce(
            [x.reshape(-1)[:0]], op
        )  # refuses what it cannot do, before anybody waits
        call = "allreduce", op, x.dtype.str, x.shape
        self._meeting.meet(self.rank, call, x, reduce, timeout)
        return x

    def broadcast(
        self, x: np.ndarray, root: int = 0, timeout: float | None = None
    ) -> np.ndarray:
        def copy(arrays: list[np.ndarray]) -> None:
            for array in arrays:
                array[...] = arrays[root]

        call = "broadcast", root, x.dtype.str, x.shape
        self._meeting.meet(self.rank, call, x, copy, timeout)
        return x

    def barrier(self, timeout: float | None = None) -> None:
        self._meeting.meet(self.rank, ("barrier",), None, lambda _: None, timeout)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            why = f"rank {self.rank} left group {self._meeting.name!r}"
            if self._meeting.leave(self.rank, why):
                self._forget(self._meeting)
