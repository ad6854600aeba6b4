"""An async actor's event loop, which lends the actor's CPUs while it rests."""

from __future__ import annotations

import selectors
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from ... import _core


class _TellingSelector(selectors.DefaultSelector):
    """Of an event loop: tells when that has nothing to run until something comes."""

    def __init__(self, rests: Callable[[bool], None]) -> None:
        super().__init__()
        self._rests = rests

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        self._rests(True)
        try:
            return super().select(timeout)
        finally:
            self._rests(False)


def new_loop(node: _core.Node) -> asyncio.AbstractEventLoop:
    """An event loop; of an actor with CPUs, one that lends them while it rests.

    A loop of the user's own kind (uvloop) does not say when it rests, and lends none.
    """
    import asyncio

    loop = asyncio.new_event_loop()
    if type(loop) is not asyncio.SelectorEventLoop or not node.serve_on_a_loop():
        return loop
    loop.close()
    return asyncio.SelectorEventLoop(_TellingSelector(node.loop_rests))
