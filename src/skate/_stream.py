"""Streams: the refs of a generator's items, each as soon as its item has been made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar

from ._ref import ObjectRef, RefCounter

if TYPE_CHECKING:
    from concurrent.futures import Future

T_co = TypeVar("T_co", covariant=True)

# What ``look_at_stream`` says.
ITEM, END, NOT_YET = 0, 1, 2


class StreamSource(RefCounter, Protocol):
    """What a stream needs of its engine; ``task`` is the id of its end's ref."""

    def next_item(
        self, task: int, timeout: float | None, taken: list[ObjectRef[Any]]
    ) -> bool:
        """Wait for the next item, and append its ref; False at the end.

        It is not returned: the handler of a signal may raise after the call has
        returned and before its result is stored. Raises ``GetTimeoutError``.
        """

    def peek_item(self, task: int) -> ObjectRef[Any]:
        """A ref that is ready once ``next_item`` does not block."""

    def look_at_stream(self, task: int) -> int:
        """``ITEM``, ``END`` or ``NOT_YET``: what ``next_item`` would do now."""

    def close_stream(self, task: int) -> None:
        """Nobody reads it any more: the producer stops. May run inside the GC."""

    def ready_future(self, ref: ObjectRef[Any]) -> Future[None]:
        """A future that ends when ``ref`` has a value or an error."""


class ObjectRefGenerator(Generic[T_co]):
    """The refs of what a remote generator yields, in order, while it still runs.

    Iterate it (``for`` or ``async for``) and ``skate.get`` each ref. If the generator
    raises, or its worker dies and may not be tried again, the next ref holds that
    error, and then the stream ends. Items that were not read are held for this object;
    when it is dropped or closed, the generator stops at its next ``yield``.

    It may be used in ``skate.wait`` (ready when the next item is) and
    ``skate.cancel``. It cannot be passed to tasks: read it, and pass the refs.
    """

    __slots__ = ("__weakref__", "_completed", "_source", "_taken")

    def __init__(self, completed: ObjectRef[Any], source: StreamSource) -> None:
        # What a call that was interrupted had taken and could not return.
        self._taken: list[ObjectRef[Any]] = []
        self._completed = completed
        self._source = source

    def __iter__(self) -> ObjectRefGenerator[T_co]:
        return self

    def __next__(self) -> ObjectRef[T_co]:
        taken = self._taken
        while not taken:
            if not self._source.next_item(self._completed._id, None, taken):
                raise StopIteration
        # No calls: the handler of a signal, which may raise, runs after them.
        ref = taken[0]
        del taken[0]
        return ref

    def __aiter__(self) -> ObjectRefGenerator[T_co]:
        return self

    async def __anext__(self) -> ObjectRef[T_co]:
        import asyncio

        task = self._completed._id
        while not self._taken and self._source.look_at_stream(task) == NOT_YET:
            ahead = self._source.peek_item(task)
            await asyncio.wrap_future(self._source.ready_future(ahead))
        taken = self._taken
        while not taken:
            if not self._source.next_item(task, None, taken):
                raise StopAsyncIteration
        ref = taken[0]  # as above
        del taken[0]
        return ref

    def completed(self) -> ObjectRef[None]:
        """A ref that is ready when the generator has ended; it holds its error."""
        return self._completed

    def next_ready(self) -> bool:
        """Whether ``next`` gives a ref at once whose value is there."""
        if self._taken:
            return True
        return self._source.look_at_stream(self._completed._id) == ITEM

    def is_finished(self) -> bool:
        """Whether the generator has ended and all items have been taken."""
        if self._taken:
            return False
        return self._source.look_at_stream(self._completed._id) == END

    def close(self) -> None:
        """Stop the generator at its next ``yield``; drop what was not read."""
        self._taken.clear()
        self._source.close_stream(self._completed._id)

    async def aclose(self) -> None:
        """The same as ``close``."""
        self.close()

    def send(self, value: Any) -> NoReturn:
        raise NotImplementedError("nothing can be sent into a remote generator.")

    def throw(self, *error: Any) -> NoReturn:
        raise NotImplementedError(
            "nothing can be thrown into a remote generator; skate.cancel(generator) "
            "raises KeyboardInterrupt in it."
        )

    async def asend(self, value: Any) -> NoReturn:
        self.send(value)

    async def athrow(self, *error: Any) -> NoReturn:
        self.throw(*error)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a stream (ObjectRefGenerator) cannot be passed to a task, put or "
            "returned: only the process that made the call can read it. Pass the refs "
            "that it gives."
        )

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._completed.hex()})"

    def __del__(self) -> None:
        if hasattr(self, "_source"):  # else a cancel came before it was complete
            self._source.close_stream(self._completed._id)
