"""Where a shard lives: in an actor of its own, or in the process of a worker."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

import skate
from skate.exceptions import GetTimeoutError

from .layout import Part
from .shard import Answer, Gradient, Rules, Shard, ShardStats, Span
from .tree import Array

Ref = skate.ObjectRef[Any]
# A gradient on its way: its spans, its sparse pieces, and then the arrays of both.
Form = tuple[tuple[Span, ...], tuple[int, ...]]


class _Host:
    """A shard, and the objects in the store that its weights are published as."""

    def __init__(self, part: Part, rules: Rules, weights: Sequence[Array]) -> None:
        self._shard = Shard(part, list(weights), rules, skate.empty)
        self._refs: list[Ref] | None = None
        self._rules = rules

    def _push(
        self,
        worker: int,
        token: int,
        version: int,
        form: Form,
        arrays: Sequence[Array],
    ) -> Answer:
        spans, sparse = form
        rows = arrays[len(spans) :]
        pairs = list(zip(rows[::2], rows[1::2], strict=True))
        gradient = Gradient(spans, arrays[: len(spans)], sparse, pairs)
        return self._shard.push(worker, token, version, gradient, time.monotonic())

    def _published(self) -> tuple[int, list[Ref]]:
        """The version, and its weights: stored once for all who ask."""
        self._shard.check()
        if not self._shard.published or self._refs is None:
            self._refs = [skate.put(block) for block in self._shard.weights]
            self._shard.published = True
        return self._shard.version, self._refs

    def _give_up_late(self) -> float | None:
        """Seconds until somebody should be given up; None: nobody need be."""
        self._shard.give_up_late(time.monotonic(), waiting=True)
        at = self._shard.next_deadline(waiting=True)
        return None if at is None else max(at - time.monotonic(), 0.001)


class ShardActor(_Host):
    """A shard in a process of its own: calls that must wait are coroutines."""

    def __init__(self, part: Part, rules: Rules, *weights: Array) -> None:
        super().__init__(part, rules, [np.array(block) for block in weights])
        self._changed = asyncio.Condition()
        self._watches: set[asyncio.Task[None]] = set()

    async def join(self, worker: int, cohort: str, num_workers: int) -> int:
        token = self._shard.join(worker, time.monotonic(), cohort, num_workers)
        await self._notify()
        return token

    async def leave(self, worker: int) -> None:
        self._shard.leave(worker)
        await self._notify()

    async def watch(self, worker: int, refs: list[Ref]) -> None:
        """``worker`` leaves once the only ref in the list is ready, or failed."""
        token = self._shard.token_of(worker)
        task = asyncio.ensure_future(self._leave_after(worker, token, refs[0]))
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    async def _leave_after(self, worker: int, token: int | None, ref: Ref) -> None:
        await asyncio.wait([asyncio.ensure_future(_ended(ref))])
        if token in (None, self._shard.token_of(worker)):  # else it was replaced
            await self.leave(worker)

    async def push(
        self, worker: int, token: int, version: int, form: Form, *arrays: Array
    ) -> Answer:
        try:
            return self._push(worker, token, version, form, arrays)
        finally:  # an error concerns all who wait
            await self._notify()

    async def pull(self, worker: int, at_least: int) -> tuple[int, list[Ref]]:
        async with self._changed:
            while not self._shard.may_read(worker, at_least):
                try:
                    await asyncio.wait_for(self._changed.wait(), self._give_up_late())
                except asyncio.TimeoutError:
                    self._give_up_late()
                    self._changed.notify_all()
        return self._published()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def stats(self) -> ShardStats:
        return self._shard.stats()

    async def state(self) -> dict[str, Any]:
        self._shard.check()
        return self._shard.state()

    async def restore(self, state: dict[str, Any]) -> None:
        self._shard.restore(state)
        self._refs = None
        await self._notify()


async def _ended(ref: Ref) -> None:
    try:
        await ref
    except Exception:
        return  # that it has ended is all that matters here


class HostedShard(_Host):
    """A shard among the threads of a worker: calls that must wait hold theirs."""

    def __init__(self, part: Part, rules: Rules, weights: Sequence[Array]) -> None:
        super().__init__(part, rules, weights)
        self._changed = threading.Condition()

    def join(self, worker: int, cohort: str, num_workers: int) -> int:
        with self._changed:
            self._changed.notify_all()
            return self._shard.join(worker, time.monotonic(), cohort, num_workers)

    def leave(self, worker: int) -> None:
        with self._changed:
            self._changed.notify_all()
            self._shard.leave(worker)

    def push(
        self, worker: int, token: int, version: int, form: Form, *arrays: Array
    ) -> Answer:
        with self._changed:
            self._changed.notify_all()
            return self._push(worker, token, version, form, arrays)

    def pull(
        self, worker: int, at_least: int, timeout: float | None = None
    ) -> tuple[int, list[Ref]]:
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._shard.may_read(worker, at_least):
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise GetTimeoutError(
                        f"the weights of step {at_least} were not there within "
                        f"{timeout} s: another worker has not pushed its gradient."
                    )
                limits = [s for s in (left, self._give_up_late()) if s is not None]
                if not self._changed.wait(min(limits, default=None)):
                    self._give_up_late()
                    self._changed.notify_all()
            return self._published()

    def stats(self) -> ShardStats:
        with self._changed:
            return self._shard.stats()

    def state(self) -> dict[str, Any]:
        with self._changed:
            self._shard.check()
            return self._shard.state()

    def restore(self, state: dict[str, Any]) -> None:
        with self._changed:
            self._shard.restore(state)
            self._refs = None
            self._changed.notify_all()


# (server and cohort, shard) -> what this process hosts for the run that it is part of
_hosted: dict[tuple[str, int], HostedShard] = {}


def host(key: tuple[str, int], shard: HostedShard) -> None:
    """Make ``shard`` answer in this process."""
    _hosted[key] = shard


# Servers of this driver whose shards are to live in the ranks of runs.
_servers: weakref.WeakSet[Any] = weakref.WeakSet()


def will_be_hosted(server: Any) -> None:
    _servers.add(server)


def has_processes() -> bool:
    """Whether ranks are processes, which can host a shard. On inline all is one."""
    return skate.init(ignore_reinit_error=True).engine != "inline"


def hosting_servers() -> bool:
    """Whether ranks that start now may have to serve shards."""
    return len(_servers) > 0


def hosted(key: tuple[str, int]) -> HostedShard:
    return _hosted[key]


def serve(key: tuple[str, int], method: str, *args: Any) -> Any:
    """Call a hosted shard: what ranks do for each other."""
    return getattr(_hosted[key], method)(*args)
