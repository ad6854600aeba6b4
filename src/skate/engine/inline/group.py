"""Collective groups: ranks meet, and the last to arrive does the work for all."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ... import kernels
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
    from .objects import Released

    Arrays = tuple[np.ndarray, ...]  # that one rank passes
    Work = Callable[[list[Arrays]], None]


@dataclass(eq=False)
class _Arrival:
    """A rank in a collective call."""

    call: tuple[Any, ...]  # must be equal on all ranks
    arrays: Arrays
    wait: Wait
    error: CollectiveError | None = None


@dataclass(eq=False)
class _Wanted:
    """A rank that waits for a message."""

    from_: int
    wait: Wait
    for_good: bool  # it has no timeout
    error: CollectiveError | None = None


class Place(NamedTuple):
    """What a rank has in a group until it leaves."""

    meeting: Meeting
    rank: int


class Meeting:
    """What the ranks of one group share. Its methods take the lock."""

    def __init__(self, baton: Baton, name: str, world_size: int) -> None:
        self.world_size = world_size
        self.name = name
        self._baton = baton
        self._actors: dict[int, int] = {}  # rank -> actor, or 0
        self._gone: dict[int, CollectiveError] = {}  # ranks, and what others get
        self._arrived: dict[int, _Arrival] = {}
        self._messages: defaultdict[tuple[int, int], deque[np.ndarray]] = defaultdict(
            deque
        )  # (from, to) -> what was sent and not taken
        self._wanted: dict[int, _Wanted] = {}  # by receiver
        self._failure: CollectiveError | None = None

    @property
    def is_over(self) -> bool:
        """A rank is gone, or was too late: nobody can join any more."""
        return self._failure is not None or bool(self._gone)

    def join(self, rank: int, world_size: int) -> Place:
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
        return Place(self, rank)

    def actor_died(self, actor_id: int) -> None:
        for rank, actor in list(self._actors.items()):
            if actor == actor_id:
                self._lose(rank, f"rank {rank} of group {self.name!r} died.")

    def leave(self, rank: int) -> bool:
        """``rank`` takes part no more. True if it was the last."""
        with self._baton.lock:
            self._lose(rank, f"rank {rank} left group {self.name!r}.")
            return len(self._gone) == len(self._actors)

    def _lose(self, rank: int, why: str) -> None:
        if rank not in self._gone:
            self._gone[rank] = RankDiedError(why, rank)
            self._end_if_one_is_gone()

    def _end_if_one_is_gone(self) -> None:
        """Whoever waits for a rank that is gone waits in vain.

        Not before somebody does: what a rank has sent before it left still arrives.
        """
        waited_for = {*self._wanted, *(w.from_ for w in self._wanted.values())}
        if self._arrived:
            waited_for.update(range(self.world_size))
        for rank, error in self._gone.items():
            if rank in waited_for:
                self._fail(error)
                return

    def _check(self, rank: int) -> None:
        """``rank`` may make another call."""
        error = self._failure or self._gone.get(rank)
        if error is not None:
            raise _again(error)

    def _fail(self, error: CollectiveError) -> None:
        """The first failure ends the group: a rank that came cannot be called back."""
        if self._failure is None:
            self._failure = error
            self._fail_call(error)

    def _fail_call(self, error: CollectiveError) -> None:
        for arrival in self._arrived.values():
            arrival.error = _again(error)
        self._release()
        wanted, self._wanted = self._wanted, {}
        for one in wanted.values():
            one.error = _again(error)
            self._baton.give_turn(one.wait)

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
        arrays: Arrays,
        work: Work,
        timeout: float | None,
    ) -> None:
        """Wait until every rank has made the same ``call`` and ``work`` is done."""
        with self._baton.lock:
            self._check(rank)
            wait = Wait(
                lambda: (
                    f"{call[0]} of group {self.name!r} for ranks "
                    f"{list(self._missing())}"
                ),
                timeout=timeout,
            )
            arrival = self._arrived[rank] = _Arrival(call, arrays, wait)
            last = not self._missing()
            if last:
                self._finish(work)
            else:
                self._end_if_one_is_gone()
                self._check_deadlock()
        if not last:
            try:
                self._baton.block(wait)
            except BaseException:
                self._give_up(rank, call)
                raise
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
        work([self._arrived[rank].arrays for rank in range(self.world_size)])
        self._release()

    # messages ---------------------------------------------------------------------

    def send(self, rank: int, to: int, x: np.ndarray) -> None:
        with self._baton.lock:
            self._check(rank)
            self._messages[rank, to].append(x.copy())
            wanted = self._wanted.get(to)
            if wanted is not None and wanted.from_ == rank:
                del self._wanted[to]
                self._baton.give_turn(wanted.wait)

    def recv(self, rank: int, from_: int, x: np.ndarray, timeout: float | None) -> None:
        queue = self._messages[from_, rank]
        with self._baton.lock:
            self._check(rank)
            about = f"a message of rank {from_} in group {self.name!r}"
            wait = Wait(lambda: about, timeout=timeout)
            wanted = _Wanted(from_, wait, timeout is None)
            blocked = not queue
            if blocked:
                self._wanted[rank] = wanted
                self._end_if_one_is_gone()
                self._check_deadlock()
        if blocked:
            try:
                self._baton.block(wait)
            except BaseException:  # this concerns no third rank
                with self._baton.lock:
                    self._wanted.pop(rank, None)
                raise
        with self._baton.lock:
            if not wanted.wait.done and blocked:
                self._wanted.pop(rank, None)
                raise CollectiveTimeoutError(
                    f"rank {rank} of group {self.name!r} waited {timeout} s for a "
                    f"message of rank {from_}.",
                    (from_,),
                )
            if wanted.error is not None:
                raise wanted.error
            message = queue.popleft()
            if _type(message) == _type(x):
                x[...] = message
                return
            (sent,), (asked,) = _type(message), _type(x)
            error = ShapeMismatchError(
                f"a message of group {self.name!r} does not fit. rank {from_}: "
                f"send({sent}, to {rank}); rank {rank}: recv({asked}, from {from_})."
            )
            self._fail(error)
            raise _again(error)

    def _check_deadlock(self) -> None:
        """Ranks that wait for each other cannot go on: say so to all."""
        for start in self._wanted:
            row = [start]
            while len(row) <= self.world_size and self._waits_for_good(row[-1]):
                row.append(self._wanted[row[-1]].from_)
            if len(row) == 1:
                continue
            if row[-1] in self._arrived or len(row) > self.world_size:
                seen = "; ".join(f"rank {r}: {self._doing(r)}" for r in sorted({*row}))
                self._fail(
                    ShapeMismatchError(
                        f"the ranks of group {self.name!r} wait for each other: {seen}."
                    )
                )
                return

    def _waits_for_good(self, rank: int) -> bool:
        return rank in self._wanted and self._wanted[rank].for_good

    def _doing(self, rank: int) -> str:
        if rank in self._wanted:
            return f"recv(from {self._wanted[rank].from_})"
        return _describe(self._arrived[rank].call)

    def _give_up(self, rank: int, call: tuple[Any, ...]) -> None:
        """``rank`` was interrupted. The others cannot count on it any more."""
        with self._baton.lock:
            self._fail(
                CollectiveError(
                    f"group {self.name!r} is unusable since rank {rank} was "
                    f"interrupted in {call[0]}. Make a new one."
                )
            )

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


def _type(x: np.ndarray) -> tuple[str]:
    return (f"{kernels.name_of(x.dtype)} {x.shape}",)


class InlineGroup:
    """A rank's end of a group; see ``engine.protocol.Group``."""

    # A thread of the group's own would be none of the baton's.
    threads = False
    gpus = False

    def __init__(
        self, place: Place, leave: Callable[[Place], None], dropped: Released[Place]
    ) -> None:
        self.rank = place.rank
        self.world_size = place.meeting.world_size
        self._meeting = place.meeting
        self._place = place
        self._leave = leave
        self._dropped = dropped
        self._closed = False

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        import numpy as np

        return np.empty(shape, dtype)

    def rounds(self) -> None:
        return None  # ranks take turns: who waited here would wait for ever

    def peers(self, x: np.ndarray) -> list[np.ndarray] | None:
        found: list[np.ndarray] = []

        def work(ranks: list[Any]) -> None:
            everyones = [array for array, _ in ranks]
            for _, found in ranks:
                found.extend(everyones)

        # Any: a list stands where other calls have an array.
        arrays: Any = (x, found)
        call = "peers", kernels.name_of(x.dtype)
        self._meeting.meet(self.rank, call, arrays, work, None)
        return found

    def allreduce(
        self, x: np.ndarray, op: str, timeout: float | None, label: str = ""
    ) -> None:
        _check(x, op)

        def work(ranks: list[Arrays]) -> None:
            total = kernels.reduce([array for (array,) in ranks], op)
            for (array,) in ranks:
                array[...] = total

        what = (label,) if label else _type(x)
        self._meet(("allreduce", *what, f"op={op}"), (x,), work, timeout)

    def reduce(self, x: np.ndarray, op: str, root: int, timeout: float | None) -> None:
        _check(x, op)

        def work(ranks: list[Arrays]) -> None:
            ranks[root][0][...] = kernels.reduce([array for (array,) in ranks], op)

        call = "reduce", *_type(x), f"op={op}", f"root={root}"
        self._meet(call, (x,), work, timeout)

    def broadcast(self, x: np.ndarray, root: int, timeout: float | None) -> None:
        def work(ranks: list[Arrays]) -> None:
            for (array,) in ranks:
                array[...] = ranks[root][0]

        self._meet(("broadcast", *_type(x), f"root={root}"), (x,), work, timeout)

    def allgather(self, x: np.ndarray, out: np.ndarray, timeout: float | None) -> None:
        def work(ranks: list[Arrays]) -> None:
            values = [x.copy() for x, _ in ranks]  # an x may be a part of its out
            for _, out in ranks:
                for rank, value in enumerate(values):
                    out[rank] = value

        self._meet(("allgather", *_type(x)), (x, out), work, timeout)

    def reducescatter(
        self, x: np.ndarray, out: np.ndarray, op: str, timeout: float | None
    ) -> None:
        _check(x, op)

        def work(ranks: list[Arrays]) -> None:
            total = kernels.reduce([x for x, _ in ranks], op)
            for (_, out), part in zip(ranks, total, strict=True):
                out[...] = part

        self._meet(("reducescatter", *_type(x), f"op={op}"), (x, out), work, timeout)

    def send(self, x: np.ndarray, to: int, timeout: float | None) -> None:
        self._meeting.send(self.rank, to, x)

    def recv(self, x: np.ndarray, from_: int, timeout: float | None) -> None:
        self._meeting.recv(self.rank, from_, x, timeout)

    def barrier(self, timeout: float | None) -> None:
        self._meet(("barrier",), (), lambda _: None, timeout)

    def _meet(
        self, call: tuple[Any, ...], arrays: Arrays, work: Work, timeout: float | None
    ) -> None:
        self._meeting.meet(self.rank, call, arrays, work, timeout)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._leave(self._place)

    def __del__(self) -> None:
        if not self._closed:
            self._dropped.note(self._place)


def _check(x: np.ndarray, op: str) -> None:
    """Refuse what cannot be done, before anybody waits."""
    kernels.reduce([x.reshape(-1)[:0]], op)
