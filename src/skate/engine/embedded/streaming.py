"""What a generator yields, sent to whoever reads it."""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ... import _core


def check_generator(result: Any, name: str, *, in_loop: bool = False) -> None:
    """``in_loop``: of an async actor, whose methods may be async generators."""
    is_async = isinstance(result, types.AsyncGeneratorType)
    if not (isinstance(result, types.GeneratorType) or (is_async and in_loop)):
        raise TypeError(
            f"{name} was called with num_returns='streaming' and must be a generator; "
            f"it returned {type(result).__name__}."
        )


async def send_all(
    call: _core.Call, generator: Any, room: Callable[[], Awaitable[Any]]
) -> None:
    """Send what a generator of either kind yields, as long as somebody reads it.

    ``room()`` ends when items have been read.
    """
    items = (
        generator
        if isinstance(generator, types.AsyncGeneratorType)
        else _take_turns(generator)
    )
    try:
        async for item in items:
            if not call.send_item(item):
                break
            while not call.has_room():
                await room()
    finally:
        await items.aclose()


async def _take_turns(generator: types.GeneratorType[Any, Any, Any]) -> Any:
    """The items of an ordinary generator; others run between two of them."""
    import asyncio
    import contextlib

    with contextlib.closing(generator):
        for item in generator:
            yield item
            await asyncio.sleep(0)
