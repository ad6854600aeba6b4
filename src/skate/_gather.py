"""Results in the order in which they come: ``as_completed`` and ``map_unordered``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._actor import ActorMethod
from ._ref import ObjectRef
from ._runtime import cancel_interrupted, current, engine_of, peek
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
    """
    return AsCompleted(refs, timeout)


class AsCompleted(Generic[W]):
    """An iterator over refs in the order in which they finish; see `as_completed`.

    It ends when all have been yielded, and goes on if more are added then.
    """

    def __init__(self, refs: Iterable[W], timeout: float | None) -> None:
        self._timeout = timeout
        self._deadline: float | None = None  # runs from the first wait on
        self._engine: Engine | None = None
        self._watch: Watch | None = None
        self._added = 0
        self._waiting: dict[int, W] = {}
        self._peeks: dict[int, ObjectRef[Any]] = {}  # what tells of a stream
        self._ready: list[int] = []  # tags, the first to be yielded last
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
                self._watch_for(self._watch, ref, tag)
            except BaseException:  # else it would be waited for in vain
                self._waiting.pop(tag, None)
                raise

    def next_batch(self, timeout: float | None = None) -> list[W]:
        """Wait for at least one; all that are ready, in the order in which they came.

        Empty when ``timeout`` seconds have gone by, or nothing is left to wait for.
        """
        if not self._ready and self._waiting:
            self._wait(timeout)
        tags, self._ready = self._ready[::-1], []
        return [self._waiting.pop(tag) for tag in tags]

    def close(self) -> None:
        """Let go of all that was not yielded."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._waiting.clear()
        self._peeks.clear()
        self._ready.clear()

    def __len__(self) -> int:
        """How many have not been yielded."""
        return len(self._waiting)

    def __iter__(self) -> AsCompleted[W]:
        return self

    def __next__(self) -> W:
        if not self._ready:
            self._wait_for_next()
        return self._waiting.pop(self._ready.pop())

    def __del__(self) -> None:
        watch = getattr(self, "_watch", None)  # a wrong item: there is none
        if watch is not None:
            watch.close()

    def _wait_for_next(self) -> None:
        if not self._waiting:
            raise StopIteration
        if self._timeout is not None and self._deadline is None:
            self._deadline = time.monotonic() + self._timeout
        if not self._wait(_remaining(self._deadline)):
            if not self._waiting:  # another thread has closed it
                raise StopIteration
            raise GetTimeoutError(
                f"{len(self._waiting)} of {self._added} refs had no value after "
                f"{self._timeout} s; their tasks go on."
            )

    def _wait(self, timeout: float | None) -> bool:
        if self._watch is None:
            # Once: the first of a dict is looked for among all that has gone.
            self._engine = engine_of(next(iter(self._waiting.values()), self))
            self._watch = watch = self._engine.watch()
            try:
                for tag, ref in self._waiting.items():
                    self._watch_for(watch, ref, tag)
            except BaseException:  # else the next wait would miss those that follow
                watch.close()
                self._watch = None
                raise
        try:
            self._ready = self._watch.next(timeout)
        except KeyboardInterrupt:
            assert self._engine is not None
            cancel_interrupted(self._engine, self._waiting.values())
            raise
        self._ready.reverse()
        if self._peeks:
            for tag in self._ready:
                self._peeks.pop(tag, None)
        return bool(self._ready)

    def _watch_for(self, watch: Watch, ref: Any, tag: int) -> None:
        if isinstance(ref, ObjectRefGenerator):
            ref = self._peeks[tag] = peek(engine_of(ref), ref)
        watch.add(ref, tag)

    def _check(self, ref: Any, where: str) -> None:
        if type(ref) is not ObjectRef and not isinstance(ref, ObjectRefGenerator):
            raise TypeError(
                f"skate.as_completed takes ObjectRefs; {where}{ref!r} of type "
                f"{type(ref).__name__}."
            )


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
            for tag in watch.next(None):
                yield engine.get((in_flight.pop(tag),), None, False)[0]
    except KeyboardInterrupt:
        cancel_interrupted(engine, in_flight.values())
        raise
    finally:
        watch.close()
