"""Results in the order in which they come: ``as_completed`` and ``map_unordered``."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._actor import ActorMethod
from ._ref import ObjectRef
from ._runtime import cancel_interrupted, checked_timeout, current, engine_of, peek
from ._stream import ObjectRefGenerator
from ._task import RemoteFunction
from .exceptions import GetTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .engine.protocol import Engine, Watch

T = TypeVar("T")
W = TypeVar("W", bound="ObjectRef[Any] | ObjectRefGenerator[Any]")


def as_completed(
    refs: Iterable[W] = (), timeout: float | None = None
) -> AsCompleted[W]:
    """Yield each of ``refs`` once it has a value or an error. O(1) for each.

    More may be added while it is iterated: see :class:`AsCompleted`. A ref is held
    until it has been yielded, and no longer.

    Args:
        refs: any iterable of refs, or of streams (ObjectRefGenerator), which are ready
            when their next item is, or their end; read to its end at once.
        timeout: seconds for all of them together; None waits for ever.

    Raises:
        GetTimeoutError: while iterating, when ``timeout`` seconds have gone by.
        TypeError: something in ``refs`` is not an ObjectRef.
        ValueError: ``timeout`` is negative.
    """
    return AsCompleted(refs, timeout)


class AsCompleted(Generic[W]):
    """An iterator over refs in the order in which they finish; see `as_completed`.

    It ends when all have been yielded, and goes on if more are added then. So it does
    when the handler of a signal has raised in it: no ref is lost. For that, a ref goes
    from one place to the next without a call in between: handlers run after a call,
    and where a loop begins again. So do other threads, which may add and iterate, too:
    each ref is yielded to one of them.
    """

    def __init__(self, refs: Iterable[W], timeout: float | None) -> None:
        self._timeout = None if timeout is None else checked_timeout(timeout)
        self._deadline: float | None = None  # runs from the first wait on
        self._engine: Engine | None = None
        self._watch: Watch | None = None
        self._lock = threading.RLock()  # of making the watch; a handler may come
        self._in_next = 0  # threads that wait for the watch
        self._added = 0
        self._waiting: dict[int, W] = {}
        self._told: list[int] = []  # by the watch, and not taken out of `_waiting` yet
        self._ready: list[W] = []  # the first to be yielded last
        for index, ref in enumerate(refs):
            self._check(ref, f"item {index} is ")
            self._waiting[self._added] = ref
            self._added += 1

    def add(self, ref: W) -> None:
        """Yield ``ref`` too, once it is ready. A stream is added anew for each item."""
        self._check(ref, "not ")
        tag = self._added
        self._added = tag + 1
        self._waiting[tag] = ref
        if self._watch is not None:
            try:
                _watch_for(self._watch, ref, tag)
            except BaseException:  # else it would be waited for in vain
                if tag in self._waiting:
                    del self._waiting[tag]
                raise

    def next_batch(self, timeout: float | None = None) -> list[W]:
        """Wait for at least one; all that are ready, in the order in which they came.

        Empty when ``timeout`` seconds have gone by, or nothing is left to wait for.
        """
        deadline = (
            None if timeout is None else time.monotonic() + checked_timeout(timeout)
        )
        while not self._ready and self._waiting:
            self._wait(_remaining(deadline))
            if deadline is not None and time.monotonic() >= deadline:
                break
        batch = self._ready[::-1]
        del self._ready[:]
        return batch

    def close(self) -> None:
        """Let go of all that was not yielded."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
        self._waiting.clear()
        self._told.clear()
        self._ready.clear()

    def __len__(self) -> int:
        """How many have not been yielded."""
        return len(self._waiting) + len(self._ready)

    def __iter__(self) -> AsCompleted[W]:
        return self

    def __next__(self) -> W:
        while not self._ready:
            self._wait_for_next()
        ref = self._ready[-1]
        del self._ready[-1]
        return ref

    def __del__(self) -> None:
        watch = getattr(self, "_watch", None)  # a wrong item: there is none
        if watch is not None:
            watch.close()

    def _wait_for_next(self) -> None:
        if not self._waiting:
            raise StopIteration
        if self._timeout is not None and self._deadline is None:
            self._deadline = time.monotonic() + self._timeout
        self._wait(_remaining(self._deadline))
        if self._ready or not self._waiting:  # of another thread, which has closed it
            return
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise GetTimeoutError(
                f"{len(self._waiting)} of {self._added} refs had no value after "
                f"{self._timeout} s; their tasks go on."
            )

    def _wait(self, timeout: float | None) -> None:
        """Until there may be something in ``_ready``, or nothing is left."""
        watch = self._watch
        if watch is None:
            with self._lock:
                watch = self._watch or self._start()
        told, waiting, ready = self._told, self._waiting, self._ready
        if not told:  # else a call was interrupted
            if not waiting:
                return
            self._in_next += 1  # known to whoever takes the last out of `_waiting`
            try:
                watch.next(timeout, told)
            except KeyboardInterrupt:
                assert self._engine is not None
                cancel_interrupted(self._engine, list(waiting.values()))
                raise
            except ValueError:
                if self._watch is watch:  # else it has just been closed
                    raise
            finally:
                self._in_next -= 1
        while True:
            try:
                tag = told[-1]
            except IndexError:
                break
            del told[-1]
            if tag in waiting:  # else its `add` was interrupted
                ready += (waiting[tag],)
                del waiting[tag]
        if self._in_next and not waiting:  # the other threads are told by its end
            self._watch = None
            watch.close()

    def _start(self) -> Watch:
        """The watch, made to miss none, whatever is added meanwhile."""
        known = self._added
        tags = list(self._waiting)
        # Once: the first of a dict is looked for among all that has gone.
        self._engine = engine_of(self._waiting.get(tags[0], self) if tags else self)
        watch = self._engine.watch()
        try:
            for tag in tags:
                self._watch_for(watch, tag)
            while known < self._added:
                tag = known
                known += 1
                self._watch_for(watch, tag)
            self._watch = watch
        except BaseException:
            watch.close()
            raise
        return watch

    def _watch_for(self, watch: Watch, tag: int) -> None:
        ref = self._waiting.get(tag)
        if ref is not None:  # else another thread has closed it
            _watch_for(watch, ref, tag)

    def _check(self, ref: Any, where: str) -> None:
        if type(ref) is not ObjectRef and not isinstance(ref, ObjectRefGenerator):
            raise TypeError(
                f"skate.as_completed takes ObjectRefs; {where}{ref!r} of type "
                f"{type(ref).__name__}."
            )


def _watch_for(watch: Watch, ref: Any, tag: int) -> None:
    if isinstance(ref, ObjectRefGenerator):
        ref = peek(engine_of(ref), ref)
    watch.add(ref, tag)


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def map_unordered(
    f: RemoteFunction[..., ObjectRef[T]] | ActorMethod,
    items: Iterable[Any],
    max_in_flight: int | None = None,
) -> Iterator[T]:
    """Yield ``f(item)`` for every item, in the order in which they finish.

    Items are taken as room comes free, so ``items`` may be endless, and memory is
    bounded by what is in flight.

    Args:
        f: a remote function, or a method of an actor.
        items: the arguments, one for each call; a ref stands for its value.
        max_in_flight: how many calls may be unfinished; None is twice the CPUs and
            a few more, which keeps every worker busy.

    Raises:
        TaskError: a call failed; raised when its turn comes. Iteration then ends.
    """
    if not isinstance(f, (RemoteFunction, ActorMethod)):
        raise TypeError(
            "skate.map_unordered takes a remote function or an actor's method, not "
            f"{f!r}. Decorate it with @skate.remote."
        )
    if f._num_returns != 1:
        raise ValueError(
            f"skate.map_unordered needs num_returns=1; {f!r} has {f._num_returns!r}."
        )
    if max_in_flight is not None and (
        isinstance(max_in_flight, bool)
        or not isinstance(max_in_flight, int)
        or max_in_flight < 1
    ):
        raise ValueError(
            f"max_in_flight must be an integer, 1 or more, not {max_in_flight!r}."
        )
    return _map_unordered(f, iter(items), max_in_flight)


def _map_unordered(
    f: RemoteFunction[..., ObjectRef[T]] | ActorMethod,
    items: Iterator[Any],
    max_in_flight: int | None,
) -> Iterator[T]:
    engine = current()
    limit = max_in_flight or 2 * engine.config.num_cpus + 16
    watch = engine.watch()
    in_flight: dict[int, ObjectRef[T]] = {}
    ready: list[int] = []
    next_tag = 0
    more = True
    try:
        while True:
            while more and len(in_flight) < limit:
                try:
                    item = next(items)
                except StopIteration:
                    more = False
                    break
                in_flight[next_tag] = ref = f.remote(item)
                watch.add(ref, next_tag)
                del ref, item
                next_tag += 1
            if not in_flight:
                return
            watch.next(None, ready)
            for tag in ready:
                yield engine.get((in_flight.pop(tag),), None, False)[0]
            ready.clear()
    except KeyboardInterrupt:
        cancel_interrupted(engine, in_flight.values())
        raise
    finally:
        watch.close()
