"""Which refs have a value: a watch over many, and futures of single ones."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import ray

from ...exceptions import EngineDiedError
from ..futures import begin, end_futures_here, surviving
from ..ref_future import new_future

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ..._ref import ObjectRef
    from .engine import RayEngine

# Seconds for which a wait looks at nothing but Ray: then at refs that another thread
# has added, and whether the session has ended.
_TURN_S = 0.1


class RayWatch:
    """See ``engine.protocol.Watch``: all that are ready, at one look over the rest."""

    def __init__(self, engine: RayEngine) -> None:
        self._engine = engine
        self._tags: dict[ray.ObjectRef, list[int]] = {}
        self._lock = threading.Lock()
        self._closed = False

    def add(self, ref: ObjectRef[Any], tag: int) -> None:
        with self._lock:
            self._tags.setdefault(self._engine.handle(ref), []).append(tag)

    def remove(self, ref: ObjectRef[Any], tag: int) -> None:
        handle = self._engine.handle(ref)
        with self._lock:
            tags = self._tags.get(handle, [])
            if tag in tags:
                tags.remove(tag)
                if not tags:
                    del self._tags[handle]

    def next(self, timeout: float | None, told: list[int]) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._engine.enter()
            with self._lock:
                pending = list(self._tags)
            if pending:
                self._look(pending, left, told)
            if told or left == 0 or self._closed:
                return
            if not pending:
                time.sleep(_TURN_S if left is None else min(left, _TURN_S))

    def _look(
        self, pending: list[ray.ObjectRef], left: float | None, told: list[int]
    ) -> None:
        turn = _TURN_S if left is None else min(left, _TURN_S)
        ready, pending = ray.wait(pending, timeout=turn, fetch_local=False)
        if ready and pending:
            # One woke us; most often others are there too, and they cost no wait.
            more, _ = ray.wait(
                pending, num_returns=len(pending), timeout=0, fetch_local=False
            )
            ready += more
        with self._lock:
            for handle in ready:
                # No calls, after which the handler of a signal may raise.
                if handle in self._tags:
                    told += self._tags[handle]
                    del self._tags[handle]

    def close(self) -> None:
        self._closed = True
        with self._lock:
            self._tags.clear()


class Futures:
    """Ends futures as Ray's own end, on a thread where callbacks may call skate."""

    def __init__(self, engine: RayEngine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._ended: queue.SimpleQueue[tuple[int, Future[Any]] | None]
        self._ended = queue.SimpleQueue()
        # Whoever takes a future out of it, ends it. With its ref, and Ray's future.
        self._waiting: dict[int, tuple[Future[Any], ObjectRef[Any], Future[Any]]] = {}
        self._tags = itertools.count()
        self._thread: threading.Thread | None = None

    def submit(self, ref: ObjectRef[Any]) -> Future[Any]:
        """A future that ends when ``ref`` does; until it has ended, ``ref`` is held."""
        future = new_future()
        rays = self._engine.handle(ref).future()
        tag = next(self._tags)
        future.add_done_callback(partial(_forget, self._waiting, tag))
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(
                    target=self._run, name="skate-futures", daemon=True
                )
                thread.start()  # may fail: the next future tries again
                self._thread = thread
            self._waiting[tag] = future, ref, rays
        # Ray calls back on the thread that all of its messages need.
        rays.add_done_callback(lambda ended: self._note(tag, ended))
        return future

    def _note(self, tag: int, ended: Future[Any]) -> None:
        with self._lock:
            if tag in self._waiting:  # else it was cancelled, or the session ended
                self._ended.put((tag, ended))

    def close(self) -> None:
        """Fail what still waits, and end the thread."""
        self._ended.put(None)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self._lock:
            waiting = list(self._waiting.values())
            self._waiting.clear()  # and with it the refs
        for future, _, _ in waiting:
            with surviving(future):
                if begin(future):
                    future.set_exception(
                        EngineDiedError("skate was shut down before the value came.")
                    )

    def _run(self) -> None:
        end_futures_here()
        while (item := self._ended.get()) is not None:
            tag, ended = item
            found = self._waiting.pop(tag, None)
            if found is not None:
                with surviving(found[0]):
                    self._finish(found[0], found[1], ended)
            del item, ended, found

    def _finish(
        self, future: Future[Any], ref: ObjectRef[Any], ended: Future[Any]
    ) -> None:
        if not begin(future):
            return
        try:
            value = self._engine.read(ended.result)
            if value is None:
                self._engine.end_stream(ref._id)
        except BaseException as error:  # whatever it is, it is the result
            future.set_exception(error.with_traceback(None))
        else:
            future.set_result(value)


def _forget(
    waiting: dict[int, tuple[Future[Any], ObjectRef[Any], Future[Any]]],
    tag: int,
    future: Future[Any],
) -> None:
    """A future has ended: if it was cancelled, or others did it, nothing is kept."""
    # No lock: a finalizer may cancel a future, in the middle of anything.
    found = waiting.pop(tag, None)
    if found is None:
        return
    # Ray keeps its own future until the value comes, and with that its ref.
    found[2].__dict__.pop("object_ref", None)
    if future.cancelled():
        future.set_running_or_notify_cancel()
