"""The items of a generator call, from the yield to the program that reads them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from ..._stream import END, ITEM, NOT_YET
from .. import serialize
from .objects import Entry, Stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..._ref import ObjectRef
    from .engine import InlineEngine
    from .units import Call


class Stream:
    """What was yielded and not read yet. The caller holds the engine's lock."""

    def __init__(self, engine: InlineEngine, producer: Call, window: int) -> None:
        self.closed = False  # nobody reads it any more
        self._engine = engine
        self.producer = producer
        self._window = window
        self._items: deque[int] = deque()  # ids of entries; only the last may be empty
        self._received = 0  # items that have come, ever
        self._taken = 0  # of them, read, ever
        self._ended = False
        self._error_left = False  # the call's own error, to be read as the last item
        self._wake: Callable[[], object] | None = None

    # The producer's side -------------------------------------------------------------

    def add(self, index: int, item: Stored) -> None:
        if index < self._received or self.closed:  # an earlier attempt had made it
            return
        if len(self._items) == self._received - self._taken:
            self._items.append(self._new_entry())
        self._received += 1
        self._engine.objects.resolve(self._items[-1], item)

    def has_room(self) -> bool:
        unread = self._received - self._taken
        return self.closed or not self._window or unread < self._window

    def when_room(self, wake: Callable[[], object]) -> None:
        """Call ``wake`` once when ``has_room`` may have changed."""
        self._wake = wake

    def end(self, failed: bool) -> None:
        self._ended = True
        self._error_left = failed
        self._wake = None
        if len(self._items) > self._received - self._taken:
            nothing = Stored.of(serialize.dumps(None))
            self._engine.objects.resolve(self._items[-1], nothing)

    def wake(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    # The reader's side ---------------------------------------------------------------

    def look(self) -> int:
        if self._received > self._taken:
            return ITEM
        if not self._ended:
            return NOT_YET
        return ITEM if self._error_left else END

    def take(self, completed: int) -> int:
        """The id of the next item, which the caller then holds."""
        if self._received == self._taken:
            self._error_left = False
            self._engine.objects.count(completed, +1)
            return completed
        item = self._items.popleft()
        self._taken += 1
        if self.has_room():
            self.wake()
        return item

    def peek(self, completed: int) -> int:
        """The id of an entry that is ready once ``look`` is not NOT_YET."""
        if not self._items and not self._ended:
            self._items.append(self._new_entry())
        peeked = self._items[0] if self._items else completed
        self._engine.objects.count(peeked, +1)
        return peeked

    def close(self) -> None:
        self.closed = True
        self.producer.reader_gone()
        self.end(failed=False)
        for item in self._items:
            self._engine.objects.count(item, -1)
        self._items.clear()

    def _new_entry(self) -> int:
        ref_id = self._engine.new_id()
        self._engine.objects.add_entry(ref_id, Entry(self.producer))
        return ref_id


def take_next(
    engine: InlineEngine,
    completed: int,
    timeout: float | None,
    taken: list[ObjectRef[Any]],
) -> bool:
    """Append the next item of a stream; False at its end."""
    while True:
        engine.enter()
        with engine.lock:
            stream = engine.streams.get(completed)
            state = END if stream is None else stream.look()
            if stream is None or state == END:
                return False
            if state == ITEM:
                taken.append(engine.ref_of(stream.take(completed)))
                return True
            ahead = engine.ref_of(stream.peek(completed))
        engine.wait_for_item(ahead, timeout)
