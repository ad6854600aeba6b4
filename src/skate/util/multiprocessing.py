"""``Pool`` with the interface of ``multiprocessing.Pool``, on actors.

What differs from the standard library: functions may be lambdas or come from a notebook
(they are pickled by cloudpickle); a worker that dies fails its own calls, and is
replaced, instead of hanging the program; ``imap`` reads its iterable as results are
taken, so it may be endless.
"""

from __future__ import annotations

import dis
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import TimeoutError  # noqa: A004 - the name that callers catch
from typing import Any, NamedTuple

import skate
from skate.exceptions import ActorDiedError, SkateError, TaskError

__all__ = ["AsyncResult", "Pool", "TimeoutError"]

_log = logging.getLogger(__name__)
_Callback = Callable[[Any], object]
_PLACE_S = 2.0
_LOOK_AGAIN_S = 0.01
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
        # A signal's handler may raise anywhere in there: what was done by then counts,
        # and what comes next may be done again.
        self._queue: deque[_Task] = deque()
        self._workers = [_Worker(self._new_actor()) for _ in range(processes)]
        self._vacancy: SkateError | None = None  # why a worker has no actor

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
            for worker in self._workers:
                if worker.actor is not None:
                    skate.kill(worker.actor)
            tasks = [worker.task for worker in self._workers if worker.ref is not None]
            for task in [*tasks, *self._queue]:
                assert task is not None
                task.result._deliver(task.part, None, _terminated())
            self._queue.clear()
            for worker in self._workers:
                worker.actor = worker.ref = worker.task = worker.watched = None

    def join(self) -> None:
        """Wait until all work is done and let the workers end; ``close`` first."""
        if not self._closed:
            raise ValueError("the pool is still running: close or terminate it first.")
        while self._unfinished():
            self._advance(None)
        with self._lock:
            for worker in self._workers:
                worker.actor = None

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
            return bool(self._queue) or any(w.ref is not None for w in self._workers)

    def _new_actor(self) -> skate.ActorHandle[Any]:
        return self._actor_class.remote(self._initializer, self._initargs)

    def _hand_out(self) -> None:
        """Give tasks to idle workers. The lock is held."""
        self._fill_vacancies()
        for worker in self._workers:
            while self._queue and worker.ref is None and worker.actor is not None:
                first = self._queue[0]
                if not self._is_running(first):  # a handler may have come in between
                    self._start(first, worker, worker.actor)
                self._queue.popleft()
                first.result._tell()  # may call back, which may hand out more
        for worker in self._workers:
            ref, task = worker.ref, worker.task
            if ref is None or task is None or worker.watched is ref:
                continue
            # Somebody must go on when nobody waits.
            if self._queue or task.result._has_callback:
                ref.future().add_done_callback(self._finisher(worker, ref))
                if worker.ref is ref:  # else it had ended, and this has settled it
                    worker.watched = ref

    def _is_running(self, task: _Task) -> bool:
        return any(w.task is task and w.ref is not None for w in self._workers)

    def _fill_vacancies(self) -> None:
        if self._closed and not self._queue:
            return
        for worker in self._workers:
            if worker.actor is None:
                try:
                    worker.actor = self._new_actor()
                except SkateError as error:  # no place now; it is tried again
                    self._vacancy = error
                    return

    def _start(
        self, task: _Task, worker: _Worker, actor: skate.ActorHandle[Any]
    ) -> None:
        def start() -> None:
            if worker.ref is None:
                ref = getattr(actor, task.method).remote(*task.args)
                worker.task = task
                worker.ref = ref

        _, error = _outcome(start)
        if error is not None:  # such as arguments that cannot be pickled
            task.result._keep(task.part, None, error)

    def _finisher(
        self, worker: _Worker, ref: skate.ObjectRef[Any]
    ) -> Callable[[Any], None]:
        return lambda _: self._finish(worker, ref)

    def _advance(self, timeout: float | None) -> None:
        """Wait until a task ends, or ``timeout`` seconds, and settle what has ended.

        Raises:
            SkateError: tasks wait, and there can be no worker for them.
        """
        with self._lock:
            self._hand_out()
            busy = {w.ref: w for w in self._workers if w.ref is not None}
            stands_still = bool(self._queue) and not busy
        if stands_still and timeout != 0:
            self._wait_for_place(timeout)
        elif busy:
            number = len(busy) if timeout == 0 else 1
            for ref in skate.wait(list(busy), number, timeout)[0]:
                self._finish(busy[ref], ref)

    def _wait_for_place(self, timeout: float | None) -> None:
        """An actor's place is free a moment after the actor was let go."""
        end = time.monotonic() + min(_PLACE_S, math.inf if timeout is None else timeout)
        while time.monotonic() < end:
            time.sleep(_LOOK_AGAIN_S)
            with self._lock:
                self._hand_out()
                if not self._queue or any(w.ref is not None for w in self._workers):
                    return
        if self._vacancy is not None and (timeout is None or timeout > _PLACE_S):
            raise self._vacancy

    def _finish(self, worker: _Worker, ref: skate.ObjectRef[Any]) -> None:
        with self._lock:
            task = worker.task
            if worker.ref is not ref or task is None:
                return  # another thread was quicker
            value, error = _outcome(lambda: skate.get(ref))
            task.result._keep(task.part, value, error)
            died = isinstance(error, ActorDiedError) and not isinstance(
                error, TaskError
            )
            worker.num_tasks += 1
            if died or worker.num_tasks == self._max_tasks:
                worker.actor, worker.num_tasks = None, 0
            worker.ref = worker.task = worker.watched = None
            self._hand_out()
            task.result._tell()


class _Worker:
    """A place for an actor, and what that does."""

    __slots__ = ("actor", "num_tasks", "ref", "task", "watched")

    def __init__(self, actor: skate.ActorHandle[Any]) -> None:
        self.actor: skate.ActorHandle[Any] | None = actor
        self.num_tasks = 0
        self.ref: skate.ObjectRef[Any] | None = None  # of the call that runs
        self.task: _Task | None = None
        # The ref that the thread of futures will settle.
        self.watched: skate.ObjectRef[Any] | None = None


class _Task(NamedTuple):
    result: AsyncResult | IMapIterator
    part: int  # of the result
    method: str  # of _PoolWorker
    args: Any


def _outcome(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What ``call`` returns or raises.

    What a signal's handler raises meanwhile is none of it, and is raised from here:
    unlike an error of the call, it does not come a second time.
    """
    try:
        return call(), None
    except SkateError as error:
        return None, error
    except Exception as error:
        try:
            call()
        except type(error) as again:
            return None, again
        raise


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
        self._missing = set(range(num_tasks))
        self._is_told = False
        self._error: BaseException | None = None
        self._callback = callback
        self._error_callback = error_callback
        self._has_callback = callback is not None or error_callback is not None
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
        while not self._tell():
            left = _left(deadline)
            self._pool._advance(left)
            if left == 0:
                return

    def ready(self) -> bool:
        """True if the call has ended."""
        if not self._tell():
            self._pool._advance(0)
        return self._tell()

    def successful(self) -> bool:
        """True if the call has ended without an error.

        Raises:
            ValueError: it has not ended.
        """
        if not self.ready():
            raise ValueError("the result is not ready; wait for it first.")
        return self._error is None

    def _deliver(self, index: int, value: Any, error: Exception | None) -> None:
        self._keep(index, value, error)
        self._tell()

    def _keep(self, index: int, value: Any, error: Exception | None) -> None:
        if index in self._missing:
            if error is None:
                self._chunks[index] = value
            elif self._error is None:
                self._error = error
            self._missing.discard(index)

    def _tell(self) -> bool:
        """True if it has ended; a callback comes before, once."""
        with self._pool._lock:
            if self._missing:
                return False
            if not self._is_told:
                self._is_told = True
                try:
                    self._call_back()
                except Exception:
                    _log.exception("a callback of a Pool's result has raised")
            return True

    def _call_back(self) -> None:
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
        self._missing: set[int] = set()
        self._ended: dict[int, tuple[Any, Exception | None]] = {}
        self._error: Exception | None = None  # of the iterable
        self._values: Iterator[Any] = iter(())
        self._reading = threading.RLock()  # a generator serves one thread at a time
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
                error, self._error = self._error, None
                raise StopIteration if error is None else error
            self._take_chunk(deadline, timeout)

    def _take_chunk(self, deadline: float | None, timeout: float | None) -> None:
        while not self._take_ended():
            left = _left(deadline)
            self._pool._advance(left)
            if left == 0:
                if self._take_ended():
                    return
                raise TimeoutError(f"no result came within {timeout} s.")

    def _take_ended(self) -> bool:
        """Take the next chunk if it has ended; raises its error."""
        with self._pool._lock:  # other threads add to them
            index = self._num_taken if self._ordered else next(iter(self._ended), -1)
            if index not in self._ended:
                return False
            value, error = self._ended[index]
            values = iter(value or ())
            # In one go: there is no call that a signal's handler could follow.
            self._values = values
            self._num_taken += 1
            del self._ended[index]
        if error is not None:
            raise error
        return True

    def _fill(self) -> None:
        """Keep some chunks ahead of the reader: each worker has one and one waits."""
        with self._reading:
            self._read_ahead()

    def _read_ahead(self) -> None:
        pool = self._pool
        while self._num_submitted - self._num_taken < 2 * pool._processes:
            try:
                chunk = list(itertools.islice(self._items, self._chunksize))
            except Exception as error:  # what came before it is still computed
                self._error = error
                self._items = iter(())
                return
            if not chunk:
                return
            args = (self._shared,), chunk, False
            with pool._lock:
                task = _Task(self, self._num_submitted, "map", args)
                self._missing.add(task.part)
                self._num_submitted += 1
                pool._submit([task])

    def _deliver(self, index: int, value: Any, error: Exception | None) -> None:
        self._keep(index, value, error)

    def _keep(self, index: int, value: Any, error: Exception | None) -> None:
        if index in self._missing:
            self._ended[index] = value, error
            self._missing.discard(index)

    def _tell(self) -> bool:
        return True


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
