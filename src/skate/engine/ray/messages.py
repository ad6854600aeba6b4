"""Values as Ray carries them: skate's own bytes, and beside them what Ray must know.

A message is the pickle of a value, alone or as ``(pickle, buffers, handles)``. The
buffers are the memory of arrays, which Ray's store lends without a copy; the handles
are the Ray refs and actors that the value contains, so that Ray counts them. Bytes
alone are what Ray passes on most cheaply: small values cost no more than in plain Ray.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..._ref import ObjectRef, RefCounter
from ...exceptions import EngineError
from .. import serialize

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    import ray

Message = Any  # bytes, or a tuple of header, buffers and handles

LARGE = 64 * 1024  # bytes; a larger pickle goes as a buffer, which is copied less often


class Counter(RefCounter, Protocol):
    """What counts refs here, and knows those in the message that is being read."""

    def receiving(self, handles: Iterable[Any]) -> AbstractContextManager[None]: ...


def pack(packed: serialize.Packed, counter: RefCounter, more: Any = ()) -> Message:
    """The message for ``packed``; ``more`` are handles to take along.

    Raises:
        EngineError: a ref in it is of another session.
    """
    header, buffers, refs = packed
    if not (buffers or refs or more or len(header) > LARGE):
        return header
    handles = {ref._id: handle_of(ref, counter) for ref in refs}
    body = pickle.PickleBuffer(header) if len(header) > LARGE else header
    return body, buffers, [*handles.values(), *more]


def unpack(message: Message, counter: Counter, copy: bool = False) -> Any:
    """The value again; its arrays are read-only views of Ray's store, or copies."""
    if type(message) is bytes:
        return serialize.loads(message)
    if message is None:  # of a stream's end
        return None
    header, buffers, handles = message
    views: Iterable[bytearray | memoryview]
    if copy:
        views = [bytearray(buffer) for buffer in buffers]
    else:
        views = [memoryview(buffer).toreadonly() for buffer in buffers]
    if not handles:
        return serialize.loads(header, views)
    with counter.receiving(handles):
        return serialize.loads(header, views)


def handle_of(ref: ObjectRef[Any], counter: RefCounter) -> Any:
    """Ray's own ref or handle behind ``ref``."""
    if ref._counter is not counter:
        raise EngineError(
            f"{ref!r} is of an earlier session, which ended with skate.shutdown()."
        )
    return ref._id.handle  # type: ignore[attr-defined]  # a RefId or an ActorId


# Calls -----------------------------------------------------------------------------


def pack_call(
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_returns: int,
    counter: RefCounter,
    more: Sequence[Any] = (),
) -> list[Any]:
    """Arguments for a Ray call: the message, then a Ray ref for each top-level ref.

    Raises:
        TypeError: an argument cannot be pickled.
    """
    if not (args or kwargs or more) and num_returns == 1:
        return []  # Ray takes twice as long over an argument
    places: list[int | str] = []
    dependencies: list[ray.ObjectRef] = []
    for place, value in itertools.chain[tuple[Any, Any]](
        enumerate(args), kwargs.items()
    ):
        if type(value) is ObjectRef:
            places.append(place)
            dependencies.append(handle_of(value, counter))
    if places:
        args = tuple(None if type(v) is ObjectRef else v for v in args)
        kwargs = {k: None if type(v) is ObjectRef else v for k, v in kwargs.items()}
    try:
        packed = serialize.dumps((args, kwargs, places, num_returns))
    except TypeError as error:
        cause = error.__cause__
        if not isinstance(cause, Exception):  # of a signal's handler
            raise
        raise serialize.explain_arguments(name, args, kwargs, cause) from cause
    return [pack(packed, counter, more), *dependencies]


class Call(NamedTuple):
    """What a worker needs to run a call, beside the code."""

    args: Sequence[Any]
    kwargs: dict[str, Any]
    num_returns: int


_NO_ARGUMENTS = Call((), {}, 1)


def unpack_call(
    message: Message, dependencies: tuple[Message, ...], counter: Counter
) -> Call:
    """The call again, with the values of top-level refs in their places."""
    if message is None:
        return _NO_ARGUMENTS
    args, kwargs, places, num_returns = unpack(message, counter)
    if places:
        args = list(args)
        for place, dependency in zip(places, dependencies, strict=True):
            value = unpack(dependency, counter)
            if isinstance(place, int):
                args[place] = value
            else:
                kwargs[place] = value
    return Call(args, kwargs, num_returns)
