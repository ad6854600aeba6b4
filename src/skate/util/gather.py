"""``as_completed`` and ``map_unordered`` with Ray's arguments.

They yield values; ``skate.as_completed`` yields refs, so that an error belongs to one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import skate

__all__ = ["as_completed", "map_unordered"]


def as_completed(
    refs: Sequence[skate.ObjectRef[Any]],
    *,
    chunk_size: int = 10,
    yield_obj_refs: bool = False,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> Iterator[Any]:
    """Yield the values of ``refs`` as they come, or the refs themselves.

    Args:
        refs: refs of tasks or puts.
        chunk_size: accepted; every value is yielded as soon as it is there.
        yield_obj_refs: yield the refs instead of their values.
        timeout: seconds for all of them together; None waits for ever.
        fetch_local: accepted; on one machine every value is local.

    Raises:
        TaskError: a task failed; raised in its turn.
        GetTimeoutError: ``timeout`` seconds have gone by.
    """
    _check_chunk_size(chunk_size)
    ready = skate.as_completed(refs, timeout)
    return ready if yield_obj_refs else map(skate.get, ready)


def map_unordered(
    fn: Any,
    items: Iterable[Any],
    *,
    backpressure_size: int | None = 100,
    chunk_size: int = 10,
    yield_obj_refs: bool = False,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> Iterator[Any]:
    """Call ``fn.remote(item)`` for every item; yield the values as they come.

    Args:
        fn: a remote function, or an actor's method.
        items: one argument for each call; may be endless.
        backpressure_size: how many calls may be unfinished; None is no limit.
        chunk_size: accepted; every value is yielded as soon as it is there.
        yield_obj_refs: yield refs instead of values.
        timeout: seconds to wait for a value; None waits for ever.
        fetch_local: accepted; on one machine every value is local.

    Raises:
        TaskError: a call failed; raised in its turn.
        GetTimeoutError: no value came within ``timeout`` seconds.
    """
    _check_chunk_size(chunk_size)
    if backpressure_size is not None and backpressure_size <= 0:
        raise ValueError(
            f"backpressure_size must be 1 or more, or None, not {backpressure_size!r}."
        )
    ready = _map_refs(fn, iter(items), backpressure_size, timeout)
    return ready if yield_obj_refs else map(skate.get, ready)


def _map_refs(
    fn: Any, items: Iterator[Any], limit: int | None, timeout: float | None
) -> Iterator[skate.ObjectRef[Any]]:
    in_flight: list[skate.ObjectRef[Any]] = []
    for item in items:
        in_flight.append(fn.remote(item))
        if limit is not None and len(in_flight) >= limit:
            ready, in_flight = _wait_for_one(in_flight, timeout)
            yield from ready
    if timeout is None:
        yield from skate.as_completed(in_flight)
        return
    # Its timeout would be for all of them together.
    while in_flight:
        ready, in_flight = _wait_for_one(in_flight, timeout)
        yield from ready
        if in_flight:  # all others that have ended: each wait looks at every ref
            ready, in_flight = skate.wait(in_flight, len(in_flight), 0)
            yield from ready


def _wait_for_one(
    in_flight: list[skate.ObjectRef[Any]], timeout: float | None
) -> tuple[list[skate.ObjectRef[Any]], list[skate.ObjectRef[Any]]]:
    ready, rest = skate.wait(in_flight, timeout=timeout)
    if not ready:
        raise skate.exceptions.GetTimeoutError(
            f"none of {len(rest)} calls had ended after {timeout} s; they go on."
        )
    return ready, rest


def _check_chunk_size(chunk_size: int) -> None:
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be 1 or more, not {chunk_size!r}.")
