"""Refs as ``concurrent.futures`` futures: one thread a process waits for them all."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import Future

    from .._ref import ObjectRef
    from .protocol import Engine, Watch


class _OfThisThread(threading.local):
    ends_futures = False


_of_this_thread = _OfThisThread()


def ends_futures() -> bool:
    """Whether this thread ends futures, and so runs what waits for them."""
    return _of_this_thread.ends_futures


def end_futures_here() -> None:
    """Say that this thread does."""
    _of_this_thread.ends_futures = True


class FutureDispatcher:
    """Ends futures as their refs do. Its thread starts with the first future."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._watch: Watch | None = None
        self._thread: threading.Thread | None = None
        self._waiting: dict[int, tuple[ObjectRef[Any], Future[Any], bool]] = {}
        self._next_tag = 0

    def submit(self, ref: ObjectRef[Any], *, with_value: bool = True) -> Future[Any]:
        """A future that ends when ``ref`` does; until then, ``ref`` is held.

        Its result is the ref's value or error, or without one just None.
        """
        from concurrent.futures import Future  # most programs never ask for one

        future: Future[Any] = Future()
        with self._lock:
            tag = self._next_tag
            self._next_tag += 1
            self._waiting[tag] = ref, future, with_value
            if self._watch is None:
                self._watch = self._engine.watch()
                self._thread = threading.Thread(
                    target=self._run,
                    args=(self._watch,),
                    name="skate-futures",
                    daemon=True,
                )
                self._thread.start()
            watch = self._watch
        watch.add(ref, tag)
        return future

    def close(self) -> None:
        """Wait for the thread. The engine has made every ``Watch.next`` raise."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self, watch: Watch) -> None:
        end_futures_here()
        try:
            while True:
                for tag in watch.next(None):
                    self._finish(tag)
        except BaseException as error:  # the engine has been shut down
            self._fail_all(error)

    def _finish(self, tag: int) -> None:
        with self._lock:
            ref, future, with_value = self._waiting.pop(tag)
        if with_value:
            finish_future(future, self._engine, ref)
        elif future.set_running_or_notify_cancel():
            future.set_result(None)

    def _fail_all(self, error: BaseException) -> None:
        with self._lock:
            waiting = list(self._waiting.values())
            self._waiting.clear()
        for _, future, _ in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)


def finish_future(future: Future[Any], engine: Engine, ref: ObjectRef[Any]) -> None:
    """End ``future`` with what ``ref`` holds; it must have a value or an error."""
    if not future.set_running_or_notify_cancel():
        return  # cancelled: nobody asks any more
    try:
        value = engine.get((ref,), None, False)[0]
    except BaseException as error:  # whatever it is, it is the result
        # Without its traceback, which is of this thread, says nothing to the user, and
        # holds these frames: a cycle that would keep the ref until the next collection.
        future.set_exception(error.with_traceback(None))
    else:
        future.set_result(value)
