"""``ActorPool``: spread calls over a fixed set of actors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import skate
from skate.exceptions import ActorDiedError, TaskError

__all__ = ["ActorPool"]

V = TypeVar("V")
# Any: what a method returns is not known through a handle; with num_returns=n it is a
# list of refs.
Call = Callable[[Any, V], Any]


class _Running(NamedTuple):
    refs: Any
    actor: skate.ActorHandle[Any] | None
    error: Exception | None = None  # the call could not be made; no actor has it


class ActorPool:
    """Runs each call on the next actor that is free.

    >>> pool = ActorPool([Worker.remote(), Worker.remote()])
    >>> list(pool.map(lambda actor, v: actor.double.remote(v), [1, 2, 3, 4]))
    [2, 4, 6, 8]

    An actor that has died leaves the pool; its call raises ActorDiedError.
    """

    def __init__(self, actors: Iterable[skate.ActorHandle[Any]]) -> None:
        self._idle = list(actors)
        self._running: dict[int, _Running] = {}  # in the order of submission
        self._waiting: deque[tuple[Call[Any], Any]] = deque()
        self._next_index = 0

    def map(self, fn: Call[V], values: Iterable[V]) -> Iterator[Any]:
        """Yield the results of ``fn(actor, value)`` in the order of ``values``.

        Results of earlier calls that nobody has asked for are dropped.

        Args:
            fn: takes an actor and a value, and returns the ref of a call.
            values: one for each call.
        """
        self._start(fn, values)
        return self._results(self.get_next)

    def map_unordered(self, fn: Call[V], values: Iterable[V]) -> Iterator[Any]:
        """Yield the results of ``fn(actor, value)`` as they come; see ``map``."""
        self._start(fn, values)
        return self._results(self.get_next_unordered)

    def submit(self, fn: Call[V], value: V) -> None:
        """Start ``fn(actor, value)`` on an actor as soon as one is free."""
        self._waiting.append((fn, value))
        if self._idle and len(self._waiting) == 1:
            self._start_next()  # an error is the caller's
        else:
            self._advance()

    def has_next(self) -> bool:
        """True if there are results that have not been returned yet."""
        return bool(self._running or self._waiting)

    def get_next(
        self, timeout: float | None = None, ignore_if_timedout: bool = False
    ) -> Any:
        """The next result in the order of submission; waits for it.

        Args:
            timeout: seconds; None waits for ever.
            ignore_if_timedout: if the result is not there in time, forget it.

        Raises:
            StopIteration: nothing was submitted that has not been returned.
            TimeoutError: the result is not there after ``timeout`` seconds.
        """
        self._check_next()
        index = min(self._running)
        call = self._running[index]
        if call.error is None and not _is_ready(call.refs, timeout):
            self._time_out(index, timeout, ignore_if_timedout)
        return self._take(index)

    def get_next_unordered(
        self, timeout: float | None = None, ignore_if_timedout: bool = False
    ) -> Any:
        """Some result, the first that comes; arguments and errors as ``get_next``.

        With ``ignore_if_timedout`` the oldest call is the one to be forgotten.
        """
        self._check_next()
        for index, call in self._running.items():
            if call.error is not None:
                return self._take(index)
        index_of = {_first(call.refs): index for index, call in self._running.items()}
        ready, _ = skate.wait(list(index_of), timeout=timeout)
        if not ready:
            self._time_out(min(self._running), timeout, ignore_if_timedout)
        return self._take(index_of[ready[0]])

    def has_free(self) -> bool:
        """True if an actor is idle and no call waits for one."""
        return bool(self._idle and not self._waiting)

    def pop_idle(self) -> skate.ActorHandle[Any] | None:
        """Take an idle actor out of the pool; None if there is none."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: skate.ActorHandle[Any]) -> None:
        """Add an actor, which is idle.

        Raises:
            ValueError: it belongs to the pool already.
        """
        busy = (call.actor for call in self._running.values())
        if actor in self._idle or actor in busy:
            raise ValueError(f"{actor!r} belongs to this ActorPool already.")
        self._idle.append(actor)
        self._advance()

    # inner --------------------------------------------------------------------------

    def _start(self, fn: Call[V], values: Iterable[V]) -> None:
        self._waiting.clear()
        while self._running:
            self._release(min(self._running))
        for value in values:
            self.submit(fn, value)

    def _results(self, get: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield get()

    def _advance(self) -> None:
        """Start calls that wait; one that cannot be made has its error as result."""
        while self._waiting and self._idle:
            try:
                self._start_next()
            except Exception as error:
                self._add(_Running(None, None, error))

    def _start_next(self) -> None:
        fn, value = self._waiting.popleft()
        actor = self._idle.pop()
        try:
            refs = fn(actor, value)
        except BaseException:
            self._idle.append(actor)
            raise
        self._add(_Running(refs, actor))

    def _add(self, call: _Running) -> None:
        self._running[self._next_index] = call
        self._next_index += 1

    def _check_next(self) -> None:
        if not self.has_next():
            raise StopIteration("no more results to get")
        if not self._running:
            raise RuntimeError(
                f"{len(self._waiting)} calls wait for an actor, and the pool has none "
                "left. Add one with push(actor)."
            )

    def _time_out(self, index: int, timeout: float | None, ignore: bool) -> None:
        message = f"no result of the pool came within {timeout} s"
        if not ignore:
            raise TimeoutError(f"{message}; the call goes on.")
        self._release(index)
        raise TimeoutError(f"{message}; the result of the call will be ignored.")

    def _release(self, index: int) -> None:
        """Forget the call; its actor takes the next one when it has ended."""
        actor = self._running.pop(index).actor
        if actor is not None:
            self._idle.append(actor)
        self._advance()

    def _take(self, index: int) -> Any:
        refs, actor, error = self._running[index]
        if actor is None:
            del self._running[index]
            assert error is not None
            raise error
        # Before the call leaves the pool: a signal's handler may raise in the wait.
        _is_ready(refs, None)
        del self._running[index]
        died = False
        try:
            return skate.get(refs)
        except ActorDiedError as error:
            # A method that met another dead actor raises a TaskError of that type.
            died = not isinstance(error, TaskError)
            raise
        finally:
            if not died:
                self._idle.append(actor)
            self._advance()


def _first(refs: Any) -> skate.ObjectRef[Any]:
    ref: skate.ObjectRef[Any] = refs[0] if isinstance(refs, list) else refs
    return ref


def _is_ready(refs: Any, timeout: float | None) -> bool:
    # What is no ref comes at once: get says what is wrong with it.
    wanted = refs if isinstance(refs, list) else [refs]
    if not wanted or not all(isinstance(ref, skate.ObjectRef) for ref in wanted):
        return True
    wanted = list(dict.fromkeys(wanted))
    return not skate.wait(wanted, num_returns=len(wanted), timeout=timeout)[1]
