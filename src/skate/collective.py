"""Collective groups: ranks that reduce, broadcast and meet over shared memory.

Make a group where the ranks are started, pass it to them, and ``join`` in each:

    group = skate.collective.create_group(world_size=2)
    for rank, actor in enumerate(actors):
        actor.run.remote(group, rank)

    def run(self, group, rank):  # in the actor
        member = group.join(rank)
        gradients = member.empty((1000,), "float32")
        ...
        member.allreduce(gradients, op="mean")
"""

from __future__ import annotations

import contextlib
import operator
import os
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from . import kernels
from ._exact import exact
from ._operand import Operand, check_copied, copied, is_on_gpu, overlap
from ._runtime import current
from .engine import protocol
from .exceptions import EngineError

__all__ = ["Group", "GroupSpec", "Handle", "create_group"]

# Any below: arrays of NumPy, torch or another library; calls return what they were
# given, or a Handle.
Array = npt.NDArray[Any]

# Of a list, arrays up to this size are reduced together. A larger one gains nothing
# from it, and would be copied.
_FUSED_BYTES = 1 << 20

# As many as a session has processes; the engines' tables grow with a group's size.
_MAX_WORLD_SIZE = 4096


class Handle:
    """A collective call that goes on; its arrays are the group's until it is done."""

    def __init__(self, group: Group, work: Callable[[], Any]) -> None:
        self._group = group
        self._work = work
        self._ended: threading.Event | None = None  # of a thread that makes it
        self._result: Any = None
        self._error: BaseException | None = None
        self._begun = False  # by a thread that waits
        self._done = False

    def wait(self) -> Any:
        """Return what the call returns, or raise what it raises, when it is done.

        With :attr:`Group.background` any thread may wait, and one whose wait is ended
        by a signal may wait again; without it, one thread makes the calls.
        """
        if not self._done:
            self._group._wait(self)
        if self._error is not None:
            raise self._error
        return self._result

    def done(self) -> bool:
        """True if :meth:`wait` would return at once."""
        return self._done

    def _run(self) -> None:
        """Make the call, on whichever thread is to."""
        try:
            self._result = self._work()
        except BaseException as error:  # raised where it is waited for
            self._error = error
        self._done = True

    def _run_here(self) -> None:
        """Make the call now, unless another thread does."""
        if self._begun:
            raise RuntimeError(
                "another thread makes this collective call; on this engine one thread "
                "of a rank may use a group at a time."
            )
        self._begun = True
        self._run()
        if self._error is not None and not isinstance(self._error, Exception):
            raise self._error  # a signal's: this thread's, whatever it waits for


class _Thread:
    """Makes a rank's asynchronous calls, one after the other.

    A daemon: nobody waits for it when the program ends, and the end of the session is
    that of the call that it makes. It holds no group that it makes no call of.
    """

    def __init__(self, group: Group) -> None:
        self._handles: SimpleQueue[Handle | None] = SimpleQueue()
        self._thread = threading.Thread(
            target=_make_calls,
            args=(self._handles,),
            name="skate-collective",
            daemon=True,
        )
        self._thread.start()
        self._end = weakref.finalize(group, self._handles.put, None)

    def make(self, handle: Handle) -> None:
        handle._ended = threading.Event()
        self._handles.put(handle)

    @staticmethod
    def make_here(handle: Handle) -> None:
        handle._run()
        assert handle._ended is not None
        handle._ended.set()

    def end(self) -> None:
        """Wait until all calls are made."""
        self._end()
        if self._thread is not threading.current_thread():
            self._thread.join()


def _make_calls(handles: SimpleQueue[Handle | None]) -> None:
    while (handle := handles.get()) is not None:
        _Thread.make_here(handle)
        del handle  # and with it the group


class Group:
    """A rank's end of a collective group. Get it with :meth:`GroupSpec.join`.

    A rank leaves its group by :meth:`close`, or when nothing holds this object.

    Every rank makes the same calls in the same order, with arrays of the same shapes
    and dtypes: NumPy arrays, torch CPU tensors, or others that export DLPack in CPU
    memory. Reductions take float32, float64, float16, bfloat16 and integers; calls that
    copy take any dtype that holds no Python objects, such as bool, complex, structured
    ones, or ``datetime64``. Ranks that disagree get
    a ``ShapeMismatchError`` each that shows the difference, and no array is changed.
    Sums are made in the order of ranks, so they are the same to the bit on every rank
    and in every run.

    Arrays from :meth:`empty` are worked on where they are; any other costs a copy in
    and a copy out. With ``async_op=True`` a call returns a :class:`Handle` at once, and
    later calls of the rank come after it. A call's ``timeout`` is in seconds; None
    waits for ever. A timeout ends the group for all, as does the death of a rank:
    who came cannot be called back. A rank that was stopped inside that call writes its
    share into all ranks' arrays of :meth:`empty` when it goes on. Do not use these any
    more, but those of a new group.

    Raises:
        ShapeMismatchError: the ranks made different calls.
        RankDiedError: a rank ended; the contents of the arrays are undefined.
        CollectiveTimeoutError: a rank did not come; see ``.missing_ranks``.
        TypeError: an array cannot be used, or ``op`` is not for its dtype.
    """

    def __init__(self, end: protocol.Group) -> None:
        self._end = end
        self.rank = end.rank
        self.world_size = end.world_size
        #: Whether asynchronous calls go on by themselves, or when they are waited for.
        self.background = end.threads
        self._pending: deque[Handle] = deque()  # asynchronous calls, oldest first
        self._thread: _Thread | None = None
        # Of _thread: no call is made by one that ends. A handler of a signal may close.
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._closed = False
        self._in_call = False
        self._fused: dict[np.dtype[Any], Array] = {}  # memory for small arrays

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """A writable array in the group's memory, on which calls copy nothing."""
        sizes = shape if isinstance(shape, Iterable) else (shape,)
        shape = tuple(operator.index(size) for size in sizes)
        wanted = np.dtype(dtype)
        check_copied(wanted)
        return self._end.empty(shape, wanted)

    def peers(self, x: Array) -> list[Array] | None:
        """Every rank's ``x``, by rank, to read and write; None across machines.

        A collective call: each rank passes an array of its own that :meth:`empty`
        made, of one dimension, one dtype and any length, and keeps it for as long as
        others use it. Ranks that write to the same place need a :meth:`barrier`
        between them.
        """
        if x.ndim != 1:
            raise ValueError(f"x has {x.ndim} dimensions; expected 1: x.reshape(-1).")
        self._flush()
        return self._end.peers(x)

    def rounds(self) -> protocol.Rounds | None:
        """Rounds of work that rank 0 begins for all others with one system call.

        For steps of some microseconds, on arrays of :meth:`peers`: see
        ``engine.protocol.Rounds``. A collective call.

        Returns:
            None where ranks share no memory, and where they take turns (inline).
        """
        self._flush()
        return self._end.rounds()

    # calls ----------------------------------------------------------------------------

    def allreduce(
        self,
        x: Any,
        op: str = "sum",
        timeout: float | None = None,
        *,
        async_op: bool = False,
    ) -> Any:
        """Replace ``x`` on every rank by the reduction over all ranks; returns ``x``.

        Args:
            x: an array, or a list of arrays, whose small ones travel together. Where
                some share memory, each is reduced as it was before the call.
            op: ``"sum"``, ``"mean"`` (of floating dtypes), ``"max"`` or ``"min"``.
        """
        if (
            type(x) is np.ndarray
            and x.dtype in kernels.NUMBERS
            and x.flags.carray  # writable, too
            and not (async_op or self._pending or self._in_call)
        ):  # the shortest way: small arrays cost microseconds
            self._end.allreduce(x, op, timeout)
            return x
        if isinstance(x, (list, tuple)):
            return self._call(lambda: self._allreduce_list(x, op, timeout), async_op, x)
        if self._end.gpus and is_on_gpu(x):
            return self._call(lambda: self._end.allreduce(x, op, timeout), async_op, x)
        operand = Operand(x)
        kernels.check_op(op, operand.array.dtype)

        def work() -> None:
            self._end.allreduce(operand.array, op, timeout)
            operand.put_back()

        return self._call(work, async_op, x)

    def iallreduce(self, x: Any, op: str = "sum") -> Handle:
        """:meth:`allreduce` with ``async_op=True``."""
        handle: Handle = self.allreduce(x, op, async_op=True)
        return handle

    def reduce(
        self,
        x: Any,
        op: str = "sum",
        root: int = 0,
        timeout: float | None = None,
        *,
        async_op: bool = False,
    ) -> Any:
        """Replace ``x`` of rank ``root`` by the reduction; the others keep theirs."""
        self._check_rank("root", root)
        operand = Operand(x)
        kernels.check_op(op, operand.array.dtype)

        def work() -> None:
            self._end.reduce(operand.array, op, root, timeout)
            if self.rank == root:
                operand.put_back()

        return self._call(work, async_op, x)

    def broadcast(
        self,
        x: Any,
        root: int = 0,
        timeout: float | None = None,
        *,
        async_op: bool = False,
    ) -> Any:
        """Replace ``x`` on every rank by that of rank ``root``; returns ``x``."""
        self._check_rank("root", root)
        if self._end.gpus and is_on_gpu(x):
            return self._call(
                lambda: self._end.broadcast(x, root, timeout), async_op, x
            )
        operand = copied(x)

        def work() -> None:
            self._end.broadcast(operand.array, root, timeout)
            operand.put_back()

        return self._call(work, async_op, x)

    def allgather(
        self,
        x: Any,
        out: Any = None,
        timeout: float | None = None,
        *,
        async_op: bool = False,
    ) -> Any:
        """The ``x`` of every rank, stacked: ``(world_size, *x.shape)``.

        Args:
            out: where to write it; None makes an array of the kind of ``x``. ``x`` may
                lie in it: the others get what it was before the call.
        """
        source = copied(x, writable=False)
        out = source.like((self.world_size, *source.shape)) if out is None else out
        target = copied(out)
        self._check_parts("out", target, source)

        def work() -> None:
            source.keep_from(target.array, but=self._own_part(target))
            self._end.allgather(source.array, target.array, timeout)
            target.put_back()

        return self._call(work, async_op, out)

    def reducescatter(
        self,
        x: Any,
        out: Any = None,
        op: str = "sum",
        timeout: float | None = None,
        *,
        async_op: bool = False,
    ) -> Any:
        """Part ``rank`` of the reduction of ``x``, which is cut along its first axis.

        Args:
            x: ``(world_size, *out.shape)``; it keeps its contents.
            out: where to write the part; None makes an array of the kind of ``x``. It
                may lie in ``x``, which is reduced as it was before the call.
        """
        source = Operand(x, writable=False)
        out = source.like(source.shape[1:]) if out is None else out
        target = Operand(out)
        self._check_parts("x", source, target)
        kernels.check_op(op, source.array.dtype)

        def work() -> None:
            target.keep_from(source.array, but=self._own_part(source))
            self._end.reducescatter(source.array, target.array, op, timeout)
            target.put_back()

        return self._call(work, async_op, out)

    def send(
        self, x: Any, to: int, timeout: float | None = None, *, async_op: bool = False
    ) -> Any:
        """Send a copy of ``x`` to rank ``to``, which calls :meth:`recv`.

        It returns when ``x`` may be changed again. That is at once, unless many
        messages to ``to`` have not been received.
        """
        self._check_peer("to", to)
        operand = copied(x, writable=False)
        return self._call(
            lambda: self._end.send(operand.array, to, timeout), async_op, x
        )

    def recv(
        self,
        x: Any,
        from_: int,
        timeout: float | None = None,
        *,
        async_op: bool = False,
    ) -> Any:
        """Fill ``x`` with the next message of rank ``from_``; returns ``x``.

        A timeout here leaves the group usable.
        """
        self._check_peer("from_", from_)
        operand = copied(x)

        def work() -> None:
            self._end.recv(operand.array, from_, timeout)
            operand.put_back()

        return self._call(work, async_op, x)

    def barrier(self, timeout: float | None = None) -> None:
        """Return when every rank has called it."""
        self._flush()
        self._end.barrier(timeout)

    def close(self) -> None:
        """Leave. May be called twice. Arrays of the group stay valid while held.

        Calls of this rank that are not done raise ``RankDiedError``, as do later ones.
        """
        self._end.close()  # ends what its thread may wait in, and refuses what follows
        self._closed = True
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.end()
        self._forget_done()
        self._fused.clear()

    # lists ----------------------------------------------------------------------------

    def _allreduce_list(
        self, arrays: Sequence[Any], op: str, timeout: float | None
    ) -> None:
        operands = [Operand(x) for x in arrays]
        for operand in operands:
            kernels.check_op(op, operand.array.dtype)
        label = f"{len(operands)} arrays: " + ", ".join(
            f"{kernels.name_of(operand.array.dtype)} {operand.shape}"
            for operand in operands
        )
        together: dict[np.dtype[Any], list[Operand]] = {}
        alone: list[Operand] = []
        for operand in operands:
            if operand.array.nbytes > _FUSED_BYTES:
                alone.append(operand)
            else:
                together.setdefault(operand.array.dtype, []).append(operand)
        later = [*list(together.values())[bool(together) :], alone[not together :]]
        if any(later) and overlap(operands):
            for operand in chain.from_iterable(later):
                operand.keep()  # it is reduced as it was, like those before it
        # The label goes with the first call, so the ranks agree before any data moves.
        for dtype, members in together.items():
            size = sum(operand.array.size for operand in members)
            flat = self._memory(dtype, size)
            views = []
            start = 0
            for operand in members:
                views.append(flat[start : start + operand.array.size])
                views[-1][...] = operand.array.reshape(-1)
                start += operand.array.size
            self._end.allreduce(flat, op, timeout, label)
            for operand, view in zip(members, views, strict=True):
                operand.array[...] = view.reshape(operand.array.shape)
                operand.put_back()
            label = ""
        for operand in alone:
            self._end.allreduce(operand.array, op, timeout, label)
            operand.put_back()
            label = ""
        if not operands:  # the others may have some
            self._end.allreduce(self.empty(0, np.float32), op, timeout, label)

    def _memory(self, dtype: np.dtype[Any], size: int) -> Array:
        found = self._fused.get(dtype)
        if found is None or found.size < size:
            self._fused.pop(dtype, None)
            found = self._fused[dtype] = self.empty(size, dtype)
        return found[:size]

    # order ----------------------------------------------------------------------------

    def _call(self, work: Callable[[], Any], async_op: bool, result: Any) -> Any:
        def call() -> Any:
            # Before any work: what is refused must leave the memory for small arrays
            # alone, which is that of the call that goes on. A handler of a signal runs
            # after a call only, so none comes between these steps.
            self._check_turn()
            self._in_call = True
            try:
                work()
            finally:
                self._in_call = False
            return result

        if not async_op:
            self._flush()
            return call()
        self._check_process()
        handle = Handle(self, call)
        if self._end.threads:
            with self._lock:
                thread = self._thread
                if thread is None:
                    thread = self._thread = _Thread(self)
                thread.make(handle)
                if self._thread is not thread and not handle._done:
                    thread.make_here(handle)  # it was ended just before
        self._pending.append(handle)
        return handle

    def _wait(self, handle: Handle) -> None:
        """Until ``handle`` is done, and all calls before it.

        What ends it early, such as a signal, changes nothing: it may be called again.
        """
        self._check_process()
        if handle._ended is not None:  # the thread makes the calls in their order
            handle._ended.wait()
        while not handle._done:
            self._forget_done()
            self._pending[0]._run_here()
        self._forget_done()

    def _forget_done(self) -> None:
        for first in tuple(self._pending):
            if not first._done:
                return
            with contextlib.suppress(ValueError):  # another thread was faster
                self._pending.remove(first)

    def _flush(self) -> None:
        """Let the calls that go on be done; their errors stay with their handles."""
        for handle in tuple(self._pending):
            self._wait(handle)
        self._check_turn()

    # checks ---------------------------------------------------------------------------

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise EngineError(
                "this process was forked from one that is a rank of the group, and is "
                "none: the thread that makes asynchronous calls is its parent's. Start "
                "the work with f.remote(...), and join the group there."
            )

    def _check_turn(self) -> None:
        if self._in_call:
            if self._closed:  # the thread makes its last call, which is no hindrance
                self._end.barrier(None)  # says that this rank has left
            raise RuntimeError(
                "another thread is in a call of this collective group, or what a "
                "signal's handler has interrupted is; one thread of a rank may use a "
                "group at a time."
            )

    def _check_rank(self, name: str, rank: int) -> None:
        if not 0 <= rank < self.world_size:
            raise ValueError(
                f"{name}={rank!r} is not a rank: the group has ranks 0 to "
                f"{self.world_size - 1}."
            )

    def _check_peer(self, name: str, rank: int) -> None:
        self._check_rank(name, rank)
        if rank == self.rank:
            raise ValueError(f"{name}={rank!r} is this rank itself.")

    def _check_parts(self, name: str, whole: Operand, part: Operand) -> None:
        expected = (self.world_size, *part.shape)
        if whole.shape != expected or whole.array.dtype != part.array.dtype:
            raise ValueError(
                f"{name} is {kernels.name_of(whole.array.dtype)} {whole.shape}; "
                f"expected {kernels.name_of(part.array.dtype)} {expected}: "
                "(world_size, *shape of a part)."
            )

    def _own_part(self, whole: Operand) -> Array:
        return whole.array[self.rank : self.rank + 1]

    def __repr__(self) -> str:
        return repr(self._end)


@dataclass(frozen=True)
class GroupSpec:
    """Names a group that ranks can join. May be passed anywhere."""

    name: str
    world_size: int

    def join(self, rank: int, timeout: float | None = None) -> Group:
        """Become ``rank``; returns when every rank has joined.

        Args:
            rank: from 0 to ``world_size - 1``, each taken once.
            timeout: seconds to wait for the others; None waits for ever.

        Raises:
            ValueError: there is no such rank, or there are too many.
            CollectiveTimeoutError: a rank did not join; see ``.missing_ranks``.
        """
        _check_world_size(self.world_size)
        if not 0 <= rank < self.world_size:
            raise ValueError(
                f"rank={rank!r}: this group has ranks 0 to {self.world_size - 1}."
            )
        rank, size = exact(operator.index(rank)), exact(operator.index(self.world_size))
        return Group(current().join_group(exact(self.name), rank, size, timeout))


def create_group(world_size: int, name: str | None = None) -> GroupSpec:
    """Describe a new group of ``world_size`` ranks; each of them joins it once.

    Args:
        name: a name of your own, unused so far in the session; None makes one up.
    """
    _check_world_size(world_size)
    return GroupSpec(name or f"group-{uuid.uuid4().hex[:12]}", world_size)


def _check_world_size(world_size: int) -> None:
    if world_size < 1:
        raise ValueError(f"world_size={world_size!r}; expected at least 1.")
    if world_size > _MAX_WORLD_SIZE:
        raise ValueError(
            f"world_size={world_size!r}; a group has at most {_MAX_WORLD_SIZE} ranks."
        )
