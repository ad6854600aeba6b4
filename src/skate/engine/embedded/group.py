"""Collective groups: one shared segment a group, mapped by its ranks only."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import threading
import time
from functools import cache
from typing import TYPE_CHECKING
from weakref import WeakSet, finalize

from ... import _core
from ...exceptions import (
    CollectiveError,
    CollectiveTimeoutError,
    EngineDiedError,
    RankDiedError,
    ResourceError,
    ShapeMismatchError,
)

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np
    import numpy.typing as npt

    from .engine import EmbeddedEngine

# Address space for the arrays of one rank; memory is used only where it is touched.
_ARRAY_BYTES = 4 << 30
# A rank asks whether the others are there: again after a sixteenth of the time that it
# has waited, but a group in all up to 500 times a second.
_SHORTEST_PAUSE_S = 0.001
_PART_OF_WAIT = 1 / 16
_PAUSE_PER_RANK_S = 0.002


def join(
    engine: EmbeddedEngine, name: str, rank: int, world_size: int, timeout: float | None
) -> EmbeddedGroup:
    """Wait for all ranks, then map the group's segment."""
    number = engine.memberships.number()
    try:
        core = _join(engine, number, name, rank, world_size, timeout)
        group = EmbeddedGroup(engine, core, name, number)
    except BaseException:  # the rank is free for others, also if Ctrl-C came
        _leave(engine, number)  # first: a second Ctrl-C may come while it is asked
        with contextlib.suppress(Exception):  # the session may have ended
            # Not just told: others may join as soon as this one has failed.
            engine.node.ask(pickle.dumps(("leave_group", number)))
        raise
    engine.memberships.add(group)
    if engine.node.closed:
        group.end()
    return group


class Memberships:
    """The groups that this process is in, to end with its session."""

    def __init__(self) -> None:
        # A signal's handler that ends the session may come while it is held.
        self._lock = threading.RLock()
        self._groups: WeakSet[EmbeddedGroup] = WeakSet()
        self._numbers = itertools.count(1)

    def number(self) -> int:
        """Of a new join, which the supervisor knows by it."""
        return next(self._numbers)

    def add(self, group: EmbeddedGroup) -> None:
        with self._lock:
            self._groups.add(group)

    def end(self) -> None:
        with self._lock:
            groups = list(self._groups)
        for group in groups:
            group.end()


def _leave(engine: EmbeddedEngine, number: int) -> None:
    with contextlib.suppress(Exception):  # the session may have ended
        engine.node.tell(pickle.dumps(("leave_group", number)))


def _join(
    engine: EmbeddedEngine,
    number: int,
    name: str,
    rank: int,
    world_size: int,
    timeout: float | None,
) -> _core.Group:
    began = time.monotonic()
    deadline = None if timeout is None else began + timeout
    size = _core.group_segment_bytes(world_size, _ARRAY_BYTES)
    what = (number, name, rank, world_size, size)
    while True:
        (answer, value), segment = engine.ask("group", *what)
        if answer == "ok":
            break
        if answer == "mismatch":
            raise ShapeMismatchError(
                f"group {name!r} has world_size {value}, not {world_size}: all ranks "
                "must give the same."
            )
        if answer == "full":
            raise ResourceError(f"{value}.")
        if answer == "taken":
            raise ValueError(
                f"rank {rank} of group {name!r} "
                + (
                    "has joined already, in this process."
                    if value
                    else "is another process."
                )
            )
        now = time.monotonic()
        pause = min((now - began) * _PART_OF_WAIT, world_size * _PAUSE_PER_RANK_S)
        pause = max(pause, _SHORTEST_PAUSE_S)
        if deadline is not None:
            pause = min(pause, deadline - now)
        if pause <= 0:
            raise CollectiveTimeoutError(
                f"group {name!r}: ranks {value} did not join within {timeout} s.", value
            )
        time.sleep(pause)
    assert segment is not None
    with contextlib.closing(segment):
        alive = [(engine.node.alive_word(index), epoch) for index, epoch in value]
        return _core.Group(segment.fileno(), size, rank, world_size, alive)


def _numbers(x: np.ndarray) -> tuple[np.ndarray, bool]:
    """The array as the core reduces it, and whether it holds bfloat16."""
    if x.dtype.kind != "V":
        return x, False
    return x.view("u2"), True  # nothing else is reduced


def _items(x: np.ndarray) -> tuple[np.ndarray, bool, str]:
    """The array as the core copies it, whether it holds bfloat16, and what it is.

    What the core has no name for goes as bytes; ranks compare what it is instead.
    """
    kernels = _kernels()
    if x.dtype in kernels.NUMBERS:
        return x, False, ""
    if x.dtype == kernels.BFLOAT16:
        return x.view("u2"), True, ""
    what = f"{kernels.name_of(x.dtype)} {x.shape}"
    if not x.dtype.itemsize:  # such as of a structure without fields
        return kernels.np.empty((*x.shape, 0), "u1"), False, what
    return x[..., None].view("u1"), False, what


@cache
def _kernels() -> ModuleType:
    from ... import kernels  # not at the start of every worker: it takes NumPy

    return kernels


class EmbeddedGroup:
    """See ``engine.protocol.Group``."""

    threads = True
    gpus = False

    def __init__(
        self, engine: EmbeddedEngine, core: _core.Group, name: str, number: int
    ) -> None:
        self._engine = engine
        self._core = core
        self._name = name
        self.rank: int = core.rank
        self.world_size: int = core.world_size
        # Also when it is dropped; not at the interpreter's end, which the supervisor
        # sees.
        self._leave = finalize(self, _leave, engine, number)
        self._leave.atexit = False

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        import numpy

        wanted = numpy.dtype(dtype)
        count = int(numpy.prod(shape, dtype=numpy.int64))
        memory: np.ndarray = self._core.empty(count * wanted.itemsize)
        return memory.view(wanted).reshape(shape)

    def peers(self, x: np.ndarray) -> list[np.ndarray] | None:
        import numpy

        place = (
            (self._core.offset_of(x.view(numpy.uint8)), x.nbytes) if x.size else (0, 0)
        )
        places = numpy.empty((self.world_size, 2), numpy.int64)
        self._check(self._core.allgather(numpy.array(place), places), None)
        peers = [
            self._core.at(offset, nbytes).view(x.dtype) if nbytes else x[:0]
            for offset, nbytes in places.tolist()
        ]
        # Not a view like the others, which do not keep the array that they show: its
        # memory would be free as soon as the caller drops ``x``.
        peers[self.rank] = x
        return peers

    def rounds(self) -> _core.Rounds:
        import numpy

        workers = self.world_size - 1
        size = _core.rounds_words(workers) if self.rank == 0 else 0
        words = self.empty((size,), numpy.uint32)
        words[:] = 0
        peers = self.peers(words)
        assert peers is not None
        return _core.Rounds(peers[0], workers, self._core.spare_spin)

    def allreduce(
        self, x: np.ndarray, op: str, timeout: float | None, label: str = ""
    ) -> None:
        x, bfloat16 = _numbers(x)
        self._check(self._core.allreduce(x, op, timeout, bfloat16, label), timeout)

    def reduce(self, x: np.ndarray, op: str, root: int, timeout: float | None) -> None:
        x, bfloat16 = _numbers(x)
        self._check(self._core.reduce(x, op, root, timeout, bfloat16), timeout)

    def broadcast(self, x: np.ndarray, root: int, timeout: float | None) -> None:
        x, bfloat16, what = _items(x)
        self._check(self._core.broadcast(x, root, timeout, bfloat16, what), timeout)

    def allgather(self, x: np.ndarray, out: np.ndarray, timeout: float | None) -> None:
        (x, bfloat16, what), (out, *_) = _items(x), _items(out)
        self._check(self._core.allgather(x, out, timeout, bfloat16, what), timeout)

    def reducescatter(
        self, x: np.ndarray, out: np.ndarray, op: str, timeout: float | None
    ) -> None:
        (x, bfloat16), (out, _) = _numbers(x), _numbers(out)
        self._check(self._core.reducescatter(x, out, op, timeout, bfloat16), timeout)

    def send(self, x: np.ndarray, to: int, timeout: float | None) -> None:
        x, bfloat16, what = _items(x)
        self._check(self._core.send(x, to, timeout, bfloat16, what), timeout)

    def recv(self, x: np.ndarray, from_: int, timeout: float | None) -> None:
        x, bfloat16, what = _items(x)
        self._check(self._core.recv(x, from_, timeout, bfloat16, what), timeout)

    def barrier(self, timeout: float | None) -> None:
        self._check(self._core.barrier(timeout), timeout)

    def end(self) -> None:
        """The session is over, and the other ranks with it: calls that wait return."""
        self._core.close()

    def close(self) -> None:
        self._core.close()
        self._leave()

    def _is_session_over(self) -> bool:
        return self._engine.has_died() or self._engine.node.closed

    def _check(
        self, problem: tuple[str, list[int], str] | None, timeout: float | None
    ) -> None:
        if problem is None:
            return
        status, ranks, detail = problem
        where = f"group {self._name!r}, rank {self.rank} of {self.world_size}"
        if status == "timeout":
            raise CollectiveTimeoutError(
                f"{where}: ranks {ranks} did not arrive within {timeout} s.", ranks
            )
        if status in ("died", "left") and self._is_session_over():
            raise EngineDiedError(f"{where}: the session has ended under the call.")
        if status == "left" and ranks == [self.rank]:
            raise RankDiedError(f"{where}: this rank has left the group.", self.rank)
        if status in ("died", "left"):
            what = "died" if status == "died" else "left the group"
            rank = ranks[0] if ranks else None
            raise RankDiedError(f"{where}: rank {rank} {what}.", rank)
        if status == "mismatch":
            raise ShapeMismatchError(
                f"{where}: the ranks made different calls; nothing was changed. "
                f"{detail}."
            )
        if status == "message":
            raise ShapeMismatchError(f"{where}: a message does not fit: {detail}.")
        if status == "deadlock":
            raise ShapeMismatchError(
                f"{where}: the ranks wait for each other: {detail}."
            )
        raise CollectiveError(
            f"{where}: the group is unusable since an earlier call failed. Make a "
            "new one."
        )

    def __repr__(self) -> str:
        return f"Group({self._name!r}, rank={self.rank}/{self.world_size})"
