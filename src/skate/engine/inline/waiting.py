"""Waiting for many refs (``Watch``), and for one as a future."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ..futures import finish_future, surviving
from ..ref_future import keep_unlocked
from .baton import Wait

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..._ref import ObjectRef
    from .baton import Home
    from .engine import InlineEngine
    from .objects import Entry


class InlineWatch:
    """Tells which of many refs are ready; see ``engine.protocol.Watch``."""

    def __init__(self, engine: InlineEngine) -> None:
        self._engine = engine
        self._ready: list[int] = []
        # What is outstanding, by its tag, and what it calls when it comes.
        self._outstanding: dict[int, tuple[Entry, Callable[[Entry], None]]] = {}
        self._waits: list[Wait] = []  # of threads in `next`
        self._closed = False

    def add(self, ref: ObjectRef[Any], tag: int) -> None:
        with self._engine.lock:
            entry = self._engine.entry(ref)
            if entry.ready:
                self._came(tag)
            else:

                def came(_: Entry) -> None:
                    self._came(tag)

                self._outstanding[tag] = entry, came
                entry.callbacks.append(came)
            for wait in self._waits:
                wait.idle = False  # now somebody misses the answer
            if self._waits:
                self._engine.baton.kick()

    def remove(self, ref: ObjectRef[Any], tag: int) -> None:
        with self._engine.lock:
            entry, came = self._outstanding.pop(tag, (None, None))
            if entry is None or came is None:
                return
            if came in entry.callbacks:
                entry.callbacks.remove(came)
            for wait in self._waits:
                wait.idle = not self._outstanding

    def _came(self, tag: int) -> None:
        self._outstanding.pop(tag, None)
        self._ready.append(tag)
        self._answer_all()

    def _answer_all(self) -> None:
        for wait in list(self._waits):
            self._engine.baton.answer(wait)

    def next(self, timeout: float | None, told: list[int]) -> None:
        with self._engine.lock:
            self._engine.enter()
            wait = Wait(
                lambda: f"as_completed of {len(self._outstanding)} refs",
                timeout=timeout,
                idle=not self._outstanding,
            )
            self._waits.append(wait)
            block = not (self._ready or self._closed)
        try:
            if block:
                self._engine.baton.block(wait)
        finally:
            with self._engine.lock:
                self._waits.remove(wait)
        with self._engine.lock:
            # No calls, after which the handler of a signal may raise.
            told += self._ready
            self._ready = []

    def close(self) -> None:
        self._closed = True
        self._ready.clear()
        if self._waits:
            with self._engine.lock:
                self._answer_all()


class DrivenFuture(Future[Any]):
    """A future whose ``result`` lets others run: it is asked for by code of theirs."""

    def __init__(self, engine: InlineEngine, ref: ObjectRef[Any]) -> None:
        super().__init__()
        keep_unlocked(self)
        self._engine = engine
        self._ref = ref

    def result(self, timeout: float | None = None) -> Any:
        self._drive(timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._drive(timeout)
        return super().exception(0)

    def _drive(self, timeout: float | None) -> None:
        if not self.done() and self._engine.wait([self._ref], 1, timeout)[0]:
            self.complete()

    def complete(self) -> None:
        if not self.done():
            with surviving(self):
                finish_future(
                    self, lambda: self._engine.get((self._ref,), None, False)[0]
                )


class Completion:
    """Completes a future when its turn comes. A unit of the baton."""

    anywhere = False

    def __init__(self, home: Home, future: DrivenFuture) -> None:
        self.home = home
        self._future = future

    def startable(self) -> bool:
        return True

    def begin(self) -> None:
        pass

    def run(self) -> None:
        self._future.complete()
