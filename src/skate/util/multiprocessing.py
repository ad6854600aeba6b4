"""``Pool`` with the interface of ``multiprocessing.Pool``, on actors.

What differs from the standard library: functions may be lambdas or come from a notebook
(they are pickled by cloudpickle); a worker that dies fails its own calls, and is
replaced, instead of hanging the program; ``imap`` reads its iterable as results are
taken, so it may be endless.
"""

from __future__ import annotations

import dis
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import TimeoutError  # noqa: A004 - the name that callers catch
from typing import Any, NamedTuple

import skate
from skate.exceptions import ActorDiedError, TaskError

__all__ = ["AsyncResult", "Pool", "TimeoutError"]

_Callback = Callable[[Any], object]
_CHUNKS_PER_WORKER = 4  # of a map: as in the standard library


class Pool:
    """Worker processes that run functions.

    >>> with Pool(4) as pool:
    ...     pool.map(abs, [-1, 2, -3])
    [1, 2, 3]

    Args:
        processes: how many workers; None is the CPUs of the session.
        initializer: called once in each worker before its first task. What it makes
            global is global for the pool's functions too.
        initargs: arguments of ``initializer``.
        maxtasksperchild: after as many tasks a worker is replaced; a chunk of ``map``
            counts as one. None keeps workers.
        context: accepted; skate starts workers in its own way.
        ray_address: only None or ``"local"``.
        ray_remote_args: options of the actors, such as ``{"num_cpus": 1}``. By
            default they hold no CPUs, as in Ray.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] | None = None,
        maxtasksperchild: int | None = None,
        context: Any = None,
        ray_address: str | None = None,
        ray_remote_args: Mapping[str, Any] | None = None,
    ) -> None:
        if ray_address not in (None, "local"):
            raise ValueError(
                f"ray_address={ray_address!r}: this Pool runs where skate runs; start "
                "that with skate.init, and leave ray_address out."
            )
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable, not {initializer!r}.")
        if processes is None:
            processes = max(1, int(skate.cluster_resources()["CPU"]))
        if processes < 1:
            raise ValueError(f"processes must be 1 or more, not {processes!r}.")
        if maxtasksperchild is not None and maxtasksperchild < 1:
            raise ValueError(
                f"maxtasksperchild must be 1 or more, or None, not {maxtasksperchild!r}"
            )
        self._processes = processes
        self._actor_class = skate.remote(_PoolWorker).options(
            **{"num_cpus": 0, **(ray_remote_args or {})}
        )
        self._initializer = initializer
        self._initargs = tuple(initargs or ())
        self._max_tasks = maxtasksperchild
        self._closed = False
        self._terminated = False
        # Whoever waits for a result also hands out the next task, and so does the
        # thread that ends futures; the lock makes them take turns.
        self._lock = threading.RLock()
        self._queue: deque[_Task] = deque()
        self._running: dict[skate.ObjectRef[Any], _Run] = {}
        self._idle = [self._new_worker() for _ in range(processes)]

    # Calls --------------------------------------------------------------------------

    def apply(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
    ) -> Any:
        """``func(*args, **kwds)``, run by a worker."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: _Callback | None = None,
        error_callback: _Callback | None = None,
    ) -> AsyncResult:
        """``apply`` that does not wait.

        Args:
            func: runs in a worker.
            args: its arguments.
            kwds: its arguments by keyword.
            callback: called with the result, before ``get`` returns it.
            error_callback: called with the exception if there was one.
        """
        self._check_running()
        result = AsyncResult(self, 1, callback, error_callback, single=True)
        call = func, tuple(args or ()), dict(kwds or {})
        self._submit([_Task(result, 0, "apply", call)])
        return result

    def map(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
    ) -> list[Any]:
        """``[func(x) for x in iterable]``, in chunks; raises the first error."""
        values: list[Any] = self._map_async(func, iterable, chunksize).get()
        return values

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: _Callback | None = None,
        error_callback: _Callback | None = None,
    ) -> AsyncResult:
        """``map`` that does not wait; see ``apply_async`` for the callbacks."""
        return self._map_async(func, iterable, chunksize, callback, error_callback)

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[Any]:
        """``[func(*x) for x in iterable]``, in chunks; raises the first error."""
        results = self._map_async(func, iterable, chunksize, star=True)
        values: list[Any] = results.get()
        return values

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: _Callback | None = None,
        error_callback: _Callback | None = None,
    ) -> AsyncResult:
        """``starmap`` that does not wait."""
        return self._map_async(
            func, iterable, chunksize, callback, error_callback, star=True
        )

    def imap(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = 1,
    ) -> IMapIterator:
        """The results of ``func`` in order, as an iterator with ``next(timeout)``.

        The iterable is read as results are taken: a few chunks for each worker ahead.
        """
        return IMapIterator(self, func, iterable, chunksize or 1, ordered=True)

    def imap_unordered(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = 1,
    ) -> IMapIterator:
        """``imap`` in the order in which the chunks end."""
        return IMapIterator(self, func, iterable, chunksize or 1, ordered=False)

    # The end ------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more work; what was given is still done."""
        self._closed = True

    def terminate(self) -> None:
        """End the workers now. Results that are not there yet are ActorDiedErrors."""
        self._closed = True
        self._advance(0)  # what has ended keeps its result
        with self._lock:
            self._terminated = True
            runs = list(self._running.values())
            tasks = [*(run.task for run in runs), *self._queue]
            workers = [*self._idle, *(run.worker for run in runs)]
            self._running.clear()
            self._queue.clear()
            self._idle.clear()
            for worker in workers:
                skate.kill(worker.actor)
            for task in tasks:
                task.result._deliver(task.part, None, _terminated())

    def join(self) -> None:
        """Wait until all work is done and let the workers end; ``close`` first."""
        if not self._closed:
            raise ValueError("the pool is still running: close or terminate it first.")
        while self._unfinished():
            self._advance(None)
        self._idle.clear()

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, *error: object) -> None:
        self.terminate()

    def __reduce__(self) -> Any:
        raise TypeError("a Pool cannot be pickled: pass functions to it instead.")

    # Inner --------------------------------------------------------------------------

    def _check_running(self) -> None:
        if self._closed:
            raise ValueError("the pool is closed; make a new one.")

    def _map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: _Callback | None = None,
        error_callback: _Callback | None = None,
        star: bool = False,
    ) -> AsyncResult:
        self._check_running()
        items = list(iterable)
        if chunksize is None:
            chunksize = -(-len(items) // (self._processes * _CHUNKS_PER_WORKER))
        chunksize = _check_chunksize(chunksize or 1)
        shared = skate.put(func)
        chunks = [items[i : i + chunksize] for i in range(0, len(items), chunksize)]
        result = AsyncResult(self, len(chunks), callback, error_callback)
        self._submit(
            [
                _Task(result, index, "map", ((shared,), chunk, star))
                for index, chunk in enumerate(chunks)
            ]
        )
        return result

    def _submit(self, tasks: list[_Task]) -> None:
        with self._lock:
            if self._terminated:
                for task in tasks:
                    task.result._deliver(task.part, None, _terminated())
                return
            self._queue.extend(tasks)
            self._hand_out()

    def _unfinished(self) -> bool:
        with self._lock:
            return bool(self._running or self._queue)

    def _new_worker(self) -> _Member:
        actor = self._actor_class.remote(self._initializer, self._initargs)
        return _Member(actor, 0)

    def _hand_out(self) -> None:
        """Give tasks to idle workers. The lock is held."""
        while self._queue and self._idle:
            task = self._queue.popleft()
            worker = self._idle.pop()
            try:
                ref = getattr(worker.actor, task.method).remote(*task.args)
            except Exception as error:  # the arguments cannot be pickled
                self._idle.append(worker)
                task.result._deliver(task.part, None, error)
                continue
            self._running[ref] = _Run(task, worker)
        for ref, run in self._running.items():
            # Somebody must go on when nobody waits.
            if not run.watched and (self._queue or run.task.result._has_callback):
                run.watched = True
                ref.future().add_done_callback(self._finisher(ref))

    def _finisher(self, ref: skate.ObjectRef[Any]) -> Callable[[Any], None]:
        return lambda _: self._finish(ref)

    def _advance(self, timeout: float | None) -> None:
        """Wait until a task ends, or ``timeout`` seconds, and settle what has ended."""
        with self._lock:
            refs = list(self._running)
        if refs:
            number = len(refs) if timeout == 0 else 1
            for ref in skate.wait(refs, number, timeout)[0]:
                self._finish(ref)

    def _finish(self, ref: skate.ObjectRef[Any]) -> None:
        with self._lock:
            run = self._running.pop(ref, None)
            if run is None:
                return  # another thread was quicker
            task, worker = run.task, run.worker
            value, error = None, None
            try:
                value = skate.get(ref)
            except BaseException as raised:  # whatever it is, it is the result
                error = raised
            self._idle.append(self._after_task(worker, error))
            self._hand_out()
            task.result._deliver(task.part, value, error)

    def _after_task(self, worker: _Member, error: BaseException | None) -> _Member:
        """``worker`` again, or the one that takes its place."""
        died = isinstance(error, ActorDiedError) and not isinstance(error, TaskError)
        count = worker.num_tasks + 1
        if died or (self._max_tasks is not None and count >= self._max_tasks):
            return self._new_worker()
        return _Member(worker.actor, count)


class _Member(NamedTuple):
    actor: skate.ActorHandle[Any]
    num_tasks: int


class _Task(NamedTuple):
    result: AsyncResult | IMapIterator
    part: int  # of the result
    method: str  # of _PoolWorker
    args: Any


class _Run:
    """A task that a worker has."""

    __slots__ = ("task", "watched", "worker")

    def __init__(self, task: _Task, worker: _Member) -> None:
        self.task = task
        self.worker = worker
        self.watched = False  # the thread of futures will settle it


def _check_chunksize(chunksize: int) -> int:
    if chunksize < 1:
        raise ValueError(f"chunksize must be 1 or more, not {chunksize!r}.")
    return chunksize


def _terminated() -> ActorDiedError:
    return ActorDiedError("the pool was terminated before this had ended.")


class AsyncResult:
    """What ``apply_async`` and ``map_async`` return; see the standard library."""

    def __init__(
        self,
        pool: Pool,
        num_tasks: int,
        callback: _Callback | None,
        error_callback: _Callback | None,
        *,
        single: bool = False,
    ) -> None:
        self._pool = pool
        self._single = single
        self._chunks: list[Any] = [()] * num_tasks
        self._missing = num_tasks
        self._error: BaseException | None = None
        self._callback = callback
        self._error_callback = error_callback
        self._has_callback = callback is not None or error_callback is not None
        if not num_tasks:
            self._tell()

    def get(self, timeout: float | None = None) -> Any:
        """The result, or the error that was raised; waits for it.

        Raises:
            TimeoutError: of ``multiprocessing``, after ``timeout`` seconds.
        """
        self.wait(timeout)
        if not self.ready():
            raise TimeoutError(f"the result did not come within {timeout} s.")
        if self._error is not None:
            raise self._error
        if self._single:
            return self._chunks[0]
        return list(itertools.chain.from_iterable(self._chunks))

    def wait(self, timeout: float | None = None) -> None:
        """Return when the result is there, or after ``timeout`` seconds."""
        deadline = _deadline(timeout)
        while self._missing:
            left = _left(deadline)
            self._pool._advance(left)
            if left == 0:
                return

    def ready(self) -> bool:
        """True if the call has ended."""
        if self._missing:
            self._pool._advance(0)
        return not self._missing

    def successful(self) -> bool:
        """True if the call has ended without an error.

        Raises:
            ValueError: it has not ended.
        """
        if not self.ready():
            raise ValueError("the result is not ready; wait for it first.")
        return self._error is None

    def _deliver(self, index: int, value: Any, error: BaseException | None) -> None:
        if error is None:
            self._chunks[index] = value
        elif self._error is None:
            self._error = error
        if self._missing == 1:
            self._tell()
        self._missing -= 1

    def _tell(self) -> None:
        """Callbacks come before ``get`` returns."""
        if self._error is not None:
            if self._error_callback is not None:
                self._error_callback(self._error)
        elif self._callback is not None:
            chunks = self._chunks
            result = chunks[0] if self._single else list(itertools.chain(*chunks))
            self._callback(result)


class IMapIterator:
    """What ``imap`` and ``imap_unordered`` return."""

    _has_callback = False

    def __init__(
        self,
        pool: Pool,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int,
        *,
        ordered: bool,
    ) -> None:
        pool._check_running()
        self._pool = pool
        self._items = iter(iterable)
        self._chunksize = _check_chunksize(chunksize)
        self._shared = skate.put(func)
        self._ordered = ordered
        self._num_submitted = 0
        self._num_taken = 0
        self._ended: dict[int, tuple[Any, BaseException | None]] = {}
        self._values: Iterator[Any] = iter(())
        self._fill()

    def __iter__(self) -> IMapIterator:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next result.

        Raises:
            StopIteration: there is none.
            TimeoutError: of ``multiprocessing``, after ``timeout`` seconds.
        """
        deadline = _deadline(timeout)
        while True:
            for value in self._values:
                return value
            self._fill()
            if self._num_taken == self._num_submitted:
                raise StopIteration
            self._take_chunk(deadline, timeout)

    def _take_chunk(self, deadline: float | None, timeout: float | None) -> None:
        while (index := self._next_index()) is None:
            left = _left(deadline)
            self._pool._advance(left)
            if left == 0 and self._next_index() is None:
                raise TimeoutError(f"no result came within {timeout} s.")
        value, error = self._ended.pop(index)
        self._num_taken += 1
        if error is not None:
            raise error
        self._values = iter(value)

    def _next_index(self) -> int | None:
        if self._ordered:
            return self._num_taken if self._num_taken in self._ended else None
        return next(iter(self._ended), None)

    def _fill(self) -> None:
        """Keep some chunks ahead of the reader: each worker has one and one waits."""
        tasks = []
        ahead = self._num_submitted - self._num_taken
        for _ in range(2 * self._pool._processes - ahead):
            chunk = list(itertools.islice(self._items, self._chunksize))
            if not chunk:
                break
            args = (self._shared,), chunk, False
            tasks.append(_Task(self, self._num_submitted, "map", args))
            self._num_submitted += 1
        self._pool._submit(tasks)

    def _deliver(self, index: int, value: Any, error: BaseException | None) -> None:
        self._ended[index] = value, error


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


class _PoolWorker:
    """The actor behind one worker."""

    def __init__(
        self, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
    ) -> None:
        self._shared: skate.ObjectRef[Any] | None = None
        self._function: Callable[..., Any] | None = None
        self._globals: dict[str, Any] = {}
        if initializer is not None:
            initializer(*initargs)
            self._globals = _made_global(initializer)

    def apply(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self._share_globals(func)
        return func(*args, **kwargs)

    def map(
        self, shared: tuple[skate.ObjectRef[Any]], items: list[Any], star: bool
    ) -> list[Any]:
        if self._shared != shared[0]:
            self._function = skate.get(shared[0])
            self._shared = shared[0]
            self._share_globals(self._function)
        function = self._function
        assert function is not None
        if star:
            return list(itertools.starmap(function, items))
        return list(map(function, items))

    def _share_globals(self, func: Any) -> None:
        # A function of __main__ comes with globals of its own; one that can be
        # imported shares its module with the initializer anyway.
        if self._globals and getattr(func, "__module__", None) == "__main__":
            getattr(func, "__globals__", {}).update(self._globals)


def _made_global(function: Any) -> dict[str, Any]:
    """What ``function``, of ``__main__``, has assigned to global names."""
    code = getattr(function, "__code__", None)
    if code is None or function.__module__ != "__main__":
        return {}
    names = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_GLOBAL"}
    return {n: function.__globals__[n] for n in names if n in function.__globals__}
