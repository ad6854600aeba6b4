"""Collective groups: ranks meet, and the last to arrive does the work for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...exceptions import (
    CollectiveTimeoutError,
    RankDiedError,
    ShapeMismatchError,
    SkateError,
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
    error: SkateError | None = None


class Meeting:
    """What the ranks of one group share. Its methods take the lock."""

    def __init__(self, baton: Baton, name: str, world_size: int) -> None:
        self.world_size = world_size
        self.name = name
        self._baton = baton
        self._actors: dict[int, int] = {}  # rank -> actor, or 0
        self._gone: dict[int, str] = {}  # rank -> why
        self._arrived: dict[int, _Arrival] = {}

    @property
    def broken(self) -> bool:
        """A rank is gone: nobody can join, or meet, any more."""
        return bool(self._gone)

    def join(self, rank: int, world_size: int) -> None:
        """Take a place. Raises ValueError if there is none like that."""
        if world_size != self.world_size:
            raise ValueError(
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
            self._gone.setdefault(rank, why)
            self._fail_all(RankDiedError(f"{self._gone[rank]}.", rank))
            return len(self._gone) == len(self._actors)

    def _fail_all(self, error: SkateError) -> None:
        for arrival in self._arrived.values():
            arrival.error = error
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
            for gone, why in self._gone.items():
                raise RankDiedError(f"{why}.", gone)
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
        if arrival.error is not None:
            raise arrival.error
        if not wait.done:
            self._give_up(rank, call, timeout)

    def _missing(self) -> tuple[int, ...]:
        return tuple(r for r in range(self.world_size) if r not in self._arrived)

    def _finish(self, work: Work) -> None:
        calls = {rank: self._arrived[rank].call for rank in range(self.world_size)}
        if len(set(calls.values())) > 1:
            seen = "; ".join(f"rank {r}: {_describe(c)}" for r, c in calls.items())
            self._fail_all(
                ShapeMismatchError(
                    f"the ranks of group {self.name!r} made different calls; nothing "
                    f"was changed. {seen}."
                )
            )
            return
        arrays = [self._arrived[rank].array for rank in range(self.world_size)]
        work([array for array in arrays if array is not None])
        self._release()

    def _give_up(self, rank: int, call: tuple[Any, ...], timeout: float | None) -> None:
        with self._baton.lock:
            missing = self._missing()
            self._arrived.pop(rank, None)
        raise CollectiveTimeoutError(
            f"rank {rank} of group {self.name!r} waited {timeout} s in {call[0]} for "
            f"ranks {list(missing)}.",
            missing,
        )


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
        call = "allreduce", op, x.dtype.str, x.shape
        self._meeting.meet(self.rank, call, x, _REDUCTIONS[op], timeout)
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


def _reduce(name: str, arrays: list[np.ndarray], *, mean: bool = False) -> None:
    """Write the reduction over ``arrays``, in the order of the ranks, into each."""
    import numpy as np

    wide = np.float32 if arrays[0].dtype == np.float16 else arrays[0].dtype
    total = arrays[0].astype(wide)
    for array in arrays[1:]:
        getattr(np, name)(total, array, out=total)
    if mean:
        np.divide(total, len(arrays), out=total, casting="unsafe")
    for array in arrays:
        array[...] = total


_REDUCTIONS: dict[str, Work] = {
    "sum": lambda arrays: _reduce("add", arrays),
    "mean": lambda arrays: _reduce("add", arrays, mean=True),
    "max": lambda arrays: _reduce("maximum", arrays),
    "min": lambda arrays: _reduce("minimum", arrays),
}
