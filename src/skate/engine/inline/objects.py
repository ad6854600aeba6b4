"""The values of refs: who holds them, and who waits for them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from ..._ref import ObjectRef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..._ref import RefCounter
    from .. import serialize
    from .units import Call

T = TypeVar("T")


class Stored(NamedTuple):
    """A value as the store keeps it: bytes of its own, read-only."""

    header: bytes
    buffers: list[memoryview]
    refs: list[ObjectRef[Any]]  # what is inside lives as long as the container

    @classmethod
    def of(cls, packed: serialize.Packed) -> Stored:
        # Copied: the caller may change its arrays as soon as the call returns.
        copies = [memoryview(bytes(buffer.raw())) for buffer in packed.buffers]
        return cls(packed.header, copies, packed.refs)

    @property
    def num_bytes(self) -> int:
        return len(self.header) + sum(buffer.nbytes for buffer in self.buffers)


class Entry:
    """What one ref refers to: nothing yet, a value, or an error."""

    __slots__ = ("callbacks", "count", "error", "producer", "value")

    def __init__(self, producer: Call | None) -> None:
        self.count = 1
        self.value: Stored | None = None
        self.error: bytes | None = None
        self.producer = producer
        self.callbacks: list[Callable[[Entry], None]] = []

    @property
    def ready(self) -> bool:
        return self.value is not None or self.error is not None


class Objects:
    """All entries of the session, counted. The caller holds the engine's lock."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._to_tell: deque[tuple[Callable[[Entry], None], Entry]] = deque()
        self._telling = False

    def __getitem__(self, ref: ObjectRef[Any]) -> Entry:
        return self._entries[ref._id]

    def __contains__(self, ref_id: int) -> bool:
        return ref_id in self._entries

    def items(self) -> Iterable[tuple[int, Entry]]:
        return self._entries.items()

    def add(self, ref_id: int, entry: Entry, counter: RefCounter) -> ObjectRef[Any]:
        self.add_entry(ref_id, entry)
        return ObjectRef._new(ref_id, counter)

    def produced_by(self, ref_id: int, call: Call) -> None:
        entry = self._entries.get(ref_id)
        if entry is not None:
            entry.producer = call

    def add_entry(self, ref_id: int, entry: Entry) -> None:
        self._entries[ref_id] = entry

    def resolve(self, ref_id: int, outcome: Stored | bytes) -> None:
        """Give the value, or the error; tell those who wait. Nobody may care.

        One who is told may resolve others, whose error it is: those that wait for them
        are told next, not from within, for such a chain may be of any length.
        """
        entry = self._entries.get(ref_id)
        if entry is None:
            return
        if isinstance(outcome, bytes):
            entry.error = outcome
        else:
            entry.value = outcome
        entry.producer = None
        callbacks, entry.callbacks = entry.callbacks, []
        self._to_tell.extend((callback, entry) for callback in callbacks)
        if self._telling:
            return
        self._telling = True
        try:
            while self._to_tell:
                callback, entry = self._to_tell.popleft()
                callback(entry)
        finally:
            self._telling = False

    def count(self, ref_id: int, change: int) -> None:
        """More or fewer Python objects hold it; with the last, it is gone."""
        entry = self._entries[ref_id]
        entry.count += change
        if entry.count == 0:
            del self._entries[ref_id]

    def clear(self) -> None:
        self._entries.clear()

    def statistics(self) -> dict[str, int]:
        values = [entry.value for entry in self._entries.values()]
        used = sum(value.num_bytes for value in values if value is not None)
        return {"objects": len(values), "store_bytes": used}


class Released(Generic[T]):
    """What is gone, noted without a lock: the GC may run anywhere."""

    def __init__(self) -> None:
        self._gone: deque[T] = deque()

    def note(self, what: T) -> None:
        self._gone.append(what)

    def drain(self, forget: Callable[[T], None]) -> None:
        while self._gone:  # forgetting a container may release what is in it
            forget(self._gone.popleft())
