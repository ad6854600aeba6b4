"""Identity of remote values: ``ObjectRef``, and what keeps it alive. No transport."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

T_co = TypeVar("T_co", covariant=True)


class RefCounter(Protocol):
    """What a ref needs of its engine. Both calls are thread-safe and never block."""

    session: str

    def release(self, ref_id: int, /) -> None:
        """One Python object that held ``ref_id`` is gone. May run inside the GC."""

    def adopt(self, kind: type[ObjectRef[Any]], ref_id: int, /) -> ObjectRef[Any]:
        """A ref of type ``kind`` that was decoded from a message.

        Its id may be another one: the object may have a new owner.
        """

    def name_actor(self, ref_id: int, class_name: str, /) -> None:
        """Statistics call the actor of this handle by its class's name."""

    def future(self, ref: ObjectRef[Any], /) -> Future[Any]:
        """A future that ends when ``ref`` does. It keeps ``ref`` alive."""


class ObjectRef(Generic[T_co]):
    """A value that exists, or will. Get it with ``skate.get(ref)`` or ``await ref``.

    Refs are counted: when the last one goes, wherever it was, the value's memory is
    freed. Pass refs to tasks as arguments; a top-level one is replaced by its value,
    one inside a container stays a ref.
    """

    __slots__ = ("__weakref__", "_counter", "_id")

    _id: int
    _counter: RefCounter

    def __init__(self) -> None:
        raise TypeError(
            "ObjectRef is made by f.remote(...) and skate.put(...), not by calling it."
        )

    @classmethod
    def _new(cls, ref_id: int, counter: RefCounter) -> ObjectRef[Any]:
        """Wrap a count that the caller already holds in ``counter``."""
        self = object.__new__(cls)
        self._id = ref_id
        self._counter = counter
        return self

    def hex(self) -> str:
        return f"{self._counter.session}{self._id:032x}"

    def binary(self) -> bytes:
        return bytes.fromhex(self.hex())

    def future(self) -> Future[T_co]:
        """A ``concurrent.futures.Future`` with this ref's value or error."""
        return self._counter.future(self)

    def as_future(self) -> asyncio.Future[T_co]:
        """An asyncio future of the running loop with this ref's value or error."""
        import asyncio

        return asyncio.wrap_future(self.future())

    def __await__(self) -> Generator[Any, None, T_co]:
        return self.as_future().__await__()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ObjectRef):
            return NotImplemented
        return self._id == other._id and self._counter is other._counter

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()})"

    def __copy__(self) -> ObjectRef[T_co]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ObjectRef[T_co]:
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        captured = _state.captured
        if captured is None:
            raise TypeError(
                f"{self!r} cannot be pickled outside a skate call: nothing would keep "
                "its value alive. Pass it to a task, an actor or skate.put, or pickle "
                "the value itself: skate.get(ref)."
            )
        captured.append(self)
        return _restore, (type(self), self._id)

    def __del__(self) -> None:
        self._counter.release(self._id)


class ActorRef(ObjectRef[Any]):
    """Counts the handles of one actor; the actor ends with the last of them."""

    __slots__ = ()


class ActorId(str):
    """An actor's id as ``get_actor_id`` gives it; ``hex`` as of Ray's ids."""

    __slots__ = ()

    def hex(self) -> str:
        return str(self)

    def binary(self) -> bytes:
        return bytes.fromhex(self)


class _State(threading.local):
    captured: list[ObjectRef[Any]] | None = None
    counter: RefCounter | None = None


_state = _State()
_default_counter: RefCounter | None = None


def set_default_counter(counter: RefCounter | None) -> None:
    """What counts refs unpickled on any thread, outside ``restore_refs``."""
    global _default_counter
    _default_counter = counter


@contextmanager
def capture_refs() -> Generator[list[ObjectRef[Any]], None, None]:
    """While it is open, refs pickled on this thread are allowed, and collected."""
    outer = _state.captured
    refs: list[ObjectRef[Any]] = []
    _state.captured = refs
    try:
        yield refs
    finally:
        _state.captured = outer


@contextmanager
def restore_refs(counter: RefCounter) -> Generator[None, None, None]:
    """While it is open, refs unpickled on this thread are counted by ``counter``."""
    outer = _state.counter
    _state.counter = counter
    try:
        yield
    finally:
        _state.counter = outer


def _restore(cls: type[ObjectRef[Any]], ref_id: int) -> ObjectRef[Any]:
    counter = _state.counter or _default_counter
    if counter is None:
        raise TypeError(
            f"an {cls.__name__} was unpickled outside a skate call; pass refs to "
            "tasks, actors or skate.put instead of pickling them yourself."
        )
    return counter.adopt(cls, ref_id)


def check_refs(call: str, refs: list[Any]) -> None:
    """Raise TypeError, naming the first item that is not an ObjectRef."""
    if set(map(type, refs)) <= {ObjectRef}:  # the loops of C: lists may be long
        return
    for index, ref in enumerate(refs):
        if type(ref) is not ObjectRef:
            raise TypeError(
                f"{call} takes ObjectRefs; item {index} of the list is {ref!r} of type "
                f"{type(ref).__name__}."
            )


def check_distinct(call: str, refs: list[Any]) -> None:
    """Raise ValueError if a ref appears twice."""
    # By identity number first: __hash__ is a call of Python code for each ref.
    if len({ref._id for ref in refs}) != len(refs) and len(set(refs)) != len(refs):
        raise ValueError(f"{call} takes distinct refs; the list has one twice.")
