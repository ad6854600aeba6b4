"""Refs as ``concurrent.futures`` futures: one thread a process waits for them all."""

from __future__ import annotations

import itertools
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..exceptions import EngineError, ResourceError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from .._ref import ObjectRef
    from .protocol import Engine, Watch


_LOOK_AGAIN_S = 0.02
_MOST_OF_A_CLOSE_S = 2.0


class _OfThisThread(threading.local):
    ends_futures = False


_of_this_thread = _OfThisThread()


def ends_futures() -> bool:
    """Whether this thread ends futures, and so runs what waits for them."""
    return _of_this_thread.ends_futures


def end_futures_here() -> None:
    """Say that this thread does."""
    _of_this_thread.ends_futures = True


class _Waiting(NamedTuple):
    watch: Watch
    ref: ObjectRef[Any]
    future: Future[Any]
    with_value: bool


class FutureDispatcher:
    """Ends futures as their refs do. Its thread starts with the first future."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # A signal's handler that asks for a future may come while it is held.
        self._lock = threading.RLock()
        self._watch: Watch | None = None
        self._threads: list[threading.Thread] = []  # but for such handlers, one
        # Whoever takes a future out of it, ends it.
        self._waiting: dict[int, _Waiting] = {}
        self._tags = itertools.count()
        self._reads = False  # a value
        self._weak = weakref.ref(self)

    def submit(self, ref: ObjectRef[Any], *, with_value: bool = True) -> Future[Any]:
        """A future that ends when ``ref`` does; until it has ended, ``ref`` is held.

        Its result is the ref's value or error, or without one just None.
        """
        from .ref_future import new_future  # most programs never ask for one

        future = new_future()
        with self._lock:
            watch = self._watch or self._start()
            tag = next(self._tags)
        try:
            self._waiting[tag] = _Waiting(watch, ref, future, with_value)
            watch.add(ref, tag)
        except BaseException:
            self._waiting.pop(tag, None)
            raise
        future.add_done_callback(partial(_forget, self._weak, tag))
        return future

    def _start(self) -> Watch:
        watch = self._engine.watch()
        thread = threading.Thread(
            target=self._run, args=(watch,), name="skate-futures", daemon=True
        )
        thread.start()  # may fail: the next future tries again
        self._threads.append(thread)
        if self._watch is not None:  # a handler of a signal has started another
            watch.close()
            return self._watch
        self._watch = watch
        return watch

    def close(self) -> None:
        """Wait for the thread. The engine has made every ``Watch.next`` raise.

        It may be held up: by a callback, or by a future whose lock is taken. A signal
        handler that interrupts ``Future.result``, and ends the session, may have come
        while its thread had the lock.
        The thread has no more use for the session, and is left then, but not while it
        reads a value: that may make refs, which must not be of the next session.
        """
        for thread in self._threads:
            if thread is threading.current_thread():
                continue
            thread.join(_MOST_OF_A_CLOSE_S)
            while thread.is_alive() and self._reads:
                thread.join(_LOOK_AGAIN_S)

    def _run(self, watch: Watch) -> None:
        end_futures_here()
        tags: list[int] = []
        try:
            while True:
                tags.clear()
                try:
                    watch.next(None, tags)
                except ResourceError:  # such as of descriptors: values come later
                    time.sleep(_LOOK_AGAIN_S)
                    continue
                for tag in tags:
                    self._finish(tag)
        except BaseException as error:  # the engine has been shut down
            self._fail_all(watch, error)

    def _finish(self, tag: int) -> None:
        found = self._waiting.pop(tag, None)
        if found is None:  # it was cancelled, or its `submit` interrupted
            return
        future = found.future
        with surviving(future):
            if found.with_value:
                finish_future(future, lambda: self._read(found.ref))
            elif begin(future):
                future.set_result(None)

    def _read(self, ref: ObjectRef[Any]) -> Any:
        self._reads = True
        try:
            return self._engine.get((ref,), None, False)[0]
        finally:
            self._reads = False

    def _fail_all(self, watch: Watch, error: BaseException) -> None:
        with self._lock:
            if self._watch is watch:
                self._watch = None
        for tag in list(self._waiting):
            found = self._waiting.get(tag)
            if found is None or found.watch is not watch:
                continue
            if self._waiting.pop(tag, None) is None:  # it has just been cancelled
                continue
            with surviving(found.future):
                if begin(found.future):
                    found.future.set_exception(error)


def _forget(of: weakref.ref[FutureDispatcher], tag: int, future: Future[Any]) -> None:
    """A future has ended: if it was cancelled, or others did it, nothing is kept.

    Programs keep futures, and with them this, for longer than the session is there.
    """
    dispatcher = of()
    # No lock: a finalizer may cancel a future, in the middle of anything.
    found = dispatcher._waiting.pop(tag, None) if dispatcher is not None else None
    if dispatcher is None or found is None:
        return
    if future.cancelled():
        future.set_running_or_notify_cancel()
    with suppress(EngineError):  # the session has ended, and the watch with it
        found.watch.remove(found.ref, tag)


@contextmanager
def surviving(future: Future[Any]) -> Generator[None, None, None]:
    """To end ``future``: what its callbacks raise is logged, and others end, too."""
    try:
        yield
    except BaseException as error:  # a callback may call sys.exit, which ends a thread
        on_main = threading.current_thread() is threading.main_thread()
        if on_main and isinstance(error, KeyboardInterrupt):
            raise  # it is Ctrl-C
        import logging  # it takes a while, and is hardly needed

        # As text: a traceback that somebody keeps would keep the ref.
        text = f"{future!r} cannot be ended:\n{traceback.format_exc()}"
        logging.getLogger("concurrent.futures").error("%s", text)


def begin(future: Future[Any]) -> bool:
    """False: it is not to be ended, for it was cancelled, or others have ended it."""
    if future.done() and not future.cancelled():
        return False
    return future.set_running_or_notify_cancel()


def finish_future(future: Future[Any], read: Callable[[], Any]) -> None:
    """End ``future`` with what ``read`` returns or raises."""
    if not begin(future):
        return
    try:
        value = read()
    except BaseException as error:  # whatever it is, it is the result
        # Without its traceback, which is of this thread, says nothing to the user, and
        # holds these frames: a cycle that would keep the ref until the next collection.
        future.set_exception(error.with_traceback(None))
    else:
        future.set_result(value)
