"""Streams on Ray: its generators of refs, read as ``StreamSource`` has it."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import ObjectRefStreamEndOfStreamError, RayError

from ..._stream import END, ITEM, NOT_YET
from ...exceptions import GetTimeoutError
from . import cancelling


class Stream:
    """What one call yields, as read by the process that made the call."""

    def __init__(self, items: Any) -> None:
        self._items = items  # Ray's generator; None once nobody reads it any more
        self._last: Any = None  # what was read last, which may be the error

    def next(self, timeout: float | None) -> Any:
        """Ray's ref of the next item; None at the end. Raises ``GetTimeoutError``."""
        items = self._items
        if items is None:
            return None
        try:
            ref = items._next_sync(timeout)
        except StopIteration:
            return None
        if ref.is_nil():
            raise GetTimeoutError(f"the stream had no next item within {timeout} s.")
        self._last = ref
        return ref

    def ahead(self) -> Any:
        """Ray's ref of what comes next, be it the end. It is not taken."""
        items = self._items
        if items is None:
            return self._last
        return items._get_next_ref_n(1)[0]

    def look(self) -> int:
        """``ITEM``, ``END`` or ``NOT_YET``."""
        items = self._items
        if items is None or items.is_finished():
            return END
        if items.next_ready():
            return ITEM
        return END if self._last_failed() else NOT_YET

    def _last_failed(self) -> bool:
        """Whether an error was read, which ends the stream before Ray says so."""
        if self._last is None:
            return False
        try:
            ray.get(self._last, timeout=0)
        except ray.exceptions.GetTimeoutError:  # large, and on another machine
            return False
        except RayError:
            return True
        return False

    def close(self) -> None:
        """Cancel the generator, and drop what was not read."""
        items, self._items = self._items, None
        if items is not None and ray.is_initialized() and not items.is_finished():
            # Ray's generators do not notice that nobody reads them.
            cancelling.cancel(items.completed(), force=False, recursive=False)

    def check(self) -> None:
        """Raise what the generator, which has ended, raised; Ray has it as an item."""
        items = self._items
        if items is None or items.is_finished():
            if self._last is not None:
                ray.get(self._last)
            return
        known = 0  # so many of those not read are there
        step = 1
        while step:
            # All refs are ready; those behind the end say so.
            ref = items._get_next_ref_n(known + step)[-1]
            try:
                ray.get(ref)
                known += step
                step *= 2
            except ObjectRefStreamEndOfStreamError:
                step //= 2


def ended(handle: Any) -> Future[None]:
    """A future that ends when Ray's ref has a value or an error."""
    future: Future[None] = Future()
    handle.future().add_done_callback(lambda _: _finish(future))
    return future


def _finish(future: Future[None]) -> None:
    if future.set_running_or_notify_cancel():
        future.set_result(None)
