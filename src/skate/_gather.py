"""Results in the order in which they come: ``as_completed`` and ``map_unordered``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from ._actor import ActorMethod
from ._ref import ObjectRef
from ._runtime import current
from ._task import RemoteFunction
from .exceptions import GetTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")


def as_completed(
    refs: Iterable[ObjectRef[T]], timeout: float | None = None
) -> Iterator[ObjectRef[T]]:
    """Yield each of ``refs`` once it has a value or an error. O(1) for each.

    A ref is held until it has been yielded, and no longer.

    Args:
        refs: any iterable of refs; read to its end at once.
        timeout: seconds for all of them together; None waits for ever.

    Raises:
        GetTimeoutError: while iterating, when ``timeout`` seconds have gone by.
        TypeError: something in ``refs`` is not an ObjectRef.
    """
    waiting: list[ObjectRef[T] | None] = list(refs)
    for index, ref in enumerate(waiting):
        if type(ref) is not ObjectRef:
            raise TypeError(
                f"skate.as_completed takes ObjectRefs; item {index} is {ref!r} of "
                f"type {type(ref).__name__}."
            )
    return _as_completed(waiting, timeout)


def _as_completed(
    waiting: list[ObjectRef[T] | None], timeout: float | None
) -> Iterator[ObjectRef[T]]:
    deadline = None if timeout is None else time.monotonic() + timeout
    left = len(waiting)
    watch = current().watch()
    try:
        for tag, ref in enumerate(waiting):
            assert ref is not None
            watch.add(ref, tag)
        ref = None
        while left:
            tags = watch.next(_remaining(deadline))
            if not tags:
                raise GetTimeoutError(
                    f"{left} of {len(waiting)} refs had no value after {timeout} s; "
                    "their tasks go on."
                )
            for tag in tags:
                left -= 1
                ref, waiting[tag] = waiting[tag], None
                assert ref is not None
                yield ref
                ref = None
    finally:
        watch.close()


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
                yield engine.get([in_flight.pop(tag)], None, False)[0]
    finally:
        watch.close()
