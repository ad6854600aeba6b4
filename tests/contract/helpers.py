"""Remote functions and actors that several contract tests use."""

from __future__ import annotations

import asyncio
from typing import Any

import skate


@skate.remote
class Signal:
    """Lets a test decide when a task goes on, and know that it has come so far."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._changed = asyncio.Condition()
        self._waiting = 0

    async def wait(self) -> bool:
        async with self._changed:
            self._waiting += 1
            self._changed.notify_all()
        return await self._event.wait()

    async def wait_for_waiting(self, number: int) -> int:
        """Ends once ``number`` calls of ``wait`` have been made."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._waiting >= number)
        return self._waiting

    async def waiting(self) -> int:
        return self._waiting

    async def set(self) -> None:
        self._event.set()


@skate.remote
def add(x: Any, y: Any) -> Any:
    return x + y


@skate.remote
def identity(x: Any) -> Any:
    return x


@skate.remote(num_cpus=0)
def wait_for(signal: skate.ActorHandle[Signal], value: Any = None) -> Any:
    skate.get(signal.wait.remote())
    return value


@skate.remote
def fail(error: Exception) -> None:
    raise error


@skate.remote
class Counter:
    def __init__(self, value: int = 0) -> None:
        self.value = value

    def add(self, n: int = 1) -> int:
        self.value += n
        return self.value

    def get(self) -> int:
        return self.value
