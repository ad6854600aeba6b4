"""The answer to one request, in time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import skate

from ..exceptions import GetTimeoutError

if TYPE_CHECKING:
    Settled = Callable[[int | None], None]


class Answer(Future[Any]):
    """The outputs of one request, in time. ``version`` is set once it is done.

    ``result`` fetches them on the thread that asks. Only if somebody wants to be told
    (a callback, ``concurrent.futures.wait``) does another thread wait for them.
    """

    version: int | None = None

    def __init__(self, ref: skate.ObjectRef[Any], keep: Any, settled: Settled) -> None:
        self._told = False
        self._ref: skate.ObjectRef[Any] | None = ref
        self._keep = keep  # memory that the replica reads
        self._settled: Settled | None = settled
        super().__init__()

    def result(self, timeout: float | None = None) -> Any:
        self._fetch(timeout)
        return super().result(0 if self._ref is None else timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._fetch(timeout)
        return super().exception(0 if self._ref is None else timeout)

    def done(self) -> bool:
        ref = self._ref
        if ref is not None and skate.wait([ref], timeout=0)[0]:
            self._take(ref)
        return super().done()

    def cancel(self) -> bool:
        """Withdraw the request: it is dropped unless its evaluation has begun."""
        ref = self._ref
        if self.done() or not super().cancel():
            return self.cancelled()
        if ref is not None:
            skate.cancel(ref)
        self._let_go()
        return True

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        self._ask_to_be_told()
        super().add_done_callback(fn)

    # concurrent.futures.wait and as_completed put themselves into this list.
    @property
    def _waiters(self) -> list[Any]:
        self._ask_to_be_told()
        return self._listeners

    @_waiters.setter
    def _waiters(self, waiters: list[Any]) -> None:
        self._listeners = waiters

    def _ask_to_be_told(self) -> None:
        ref = self._ref
        if ref is not None and not self._told:
            self._told = True
            ref.future().add_done_callback(lambda _: self._take(ref))

    def _fetch(self, timeout: float | None) -> None:
        ref = self._ref
        if ref is None or super().done():
            return
        if timeout is not None and not skate.wait([ref], timeout=timeout)[0]:
            raise GetTimeoutError(
                f"no answer within {timeout} s. The request goes on: ask again, wait "
                "longer, or cancel() it."
            )
        self._take(ref)

    def _take(self, ref: skate.ObjectRef[Any]) -> None:
        """End as ``ref`` does; once, on whichever thread is first."""
        queued = None
        try:
            outputs, self.version, queued = skate.get(ref)
        except Exception as error:
            # Without its traceback, which is of this thread and holds these frames.
            failure: BaseException | None = error.with_traceback(None)
        else:
            failure = None
        with self._condition:
            first, self._ref = self._ref is not None, None
        if not first or not self.set_running_or_notify_cancel():
            return
        self._let_go(queued)
        if failure is not None:
            self.set_exception(failure)
        else:
            self.set_result(outputs)

    def _let_go(self, queued: int | None = None) -> None:
        settled, self._settled, self._keep = self._settled, None, None
        if settled is not None:
            settled(queued)

    def __del__(self) -> None:
        self._let_go()
