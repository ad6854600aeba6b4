"""The actors of a run: its ranks, and the mailbox between them and the driver."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

import numpy as np

import skate
from skate.collective import Group, GroupSpec

from .context import Context, Report, set_context
from .heap import keep_freed_memory
from .shard_host import serve

# Collectives wait a little longer, so that the rank that hangs can say where.
GRACE_S = 0.5


@dataclass(frozen=True)
class Silence:
    """A rank hangs: it has called nothing of its context for too long."""

    rank: int
    seconds: float
    stack: str


@dataclass(frozen=True)
class Assignment:
    """What a rank is told at its start."""

    group: GroupSpec
    rank: int
    seed: int
    deadline: float | None
    own_process: bool  # not shared with the driver
    hosts: Sequence[Any] = ()


class Rank:
    """An actor that runs the loop as one rank of the group."""

    def run(
        self,
        loop: Callable[..., Any],
        config: Any,
        job: Assignment,
        checkpoint: Any,
        mailbox: Any,
    ) -> None:
        if job.own_process:
            keep_freed_memory()
        member: Any = job.group.join(job.rank)
        watchdog = None
        if job.deadline is not None:
            watchdog = Watchdog(job.rank, job.deadline, mailbox)
            member = Watched(member, watchdog)

        def post(report: Report) -> bool:
            stop: bool = skate.get(mailbox.post.remote(report))
            return stop

        context = Context(
            member,
            checkpoint,
            post,
            run_id=job.group.name,
            seed=job.seed,
            hosts=job.hosts,
            beat=watchdog.beat if watchdog else None,
            waiting=watchdog.waiting if watchdog else contextlib.nullcontext,
        )
        set_context(context)
        seed_all(context.seed)
        try:
            loop(config) if inspect.signature(loop).parameters else loop()
            for leave in context.at_end:
                leave()
        finally:
            if watchdog is not None:
                watchdog.close()
            # On failure the other ranks learn of it here, at their next collective.
            member.close()


class ServingRank(Rank):
    """A rank in whose process shards of a parameter server may live."""

    @skate.method(concurrency_group="serving")
    def serve(self, key: tuple[str, int], method: str, *args: Any) -> Any:
        """Call a shard of a parameter server that this rank hosts."""
        return serve(key, method, *args)


def seed_all(seed: int) -> None:
    """Begin the random states that programs use from ``seed``."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  what users may rely on
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)


class Watchdog:
    """Tells the mailbox, with the loop's stack, if nothing is heard of a rank."""

    def __init__(self, rank: int, deadline: float, mailbox: Any) -> None:
        self.deadline = deadline
        self._rank = rank
        self._mailbox = mailbox
        self._thread_id = threading.get_ident()
        self._last = time.monotonic()
        self._waiting = False  # for other ranks: then one of those is to blame
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name="skate-watchdog", daemon=True
        )
        self._thread.start()

    def beat(self) -> None:
        self._last = time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While the loop waits for other ranks it does not hang itself."""
        self._waiting = True
        try:
            yield
        finally:
            self.beat()
            self._waiting = False

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        left = self.deadline
        while not self._ended.wait(max(left, 0.01)):
            silent = time.monotonic() - self._last
            left = self.deadline - silent
            if self._waiting:
                left = self.deadline
            elif left <= 0:
                frame = sys._current_frames().get(self._thread_id)
                stack = "".join(traceback.format_stack(frame)) if frame else ""
                self._mailbox.silent.remote(Silence(self._rank, silent, stack))
                return


class Watched:
    """A group whose calls have a time limit, and do not count as hanging."""

    def __init__(self, group: Group, watchdog: Watchdog) -> None:
        self._group = group
        self._watchdog = watchdog

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._group, name)
        if not inspect.ismethod(found):
            return found
        kind: Any = type(self._group)  # mypy does not take a class for hashable
        accepts_timeout = _position_of_timeout(kind, name)
        limit = self._watchdog.deadline + GRACE_S

        @wraps(found)
        def call(*args: Any, **kwargs: Any) -> Any:
            if accepts_timeout is not None and kwargs.get("timeout") is None:
                if len(args) > accepts_timeout:
                    if args[accepts_timeout] is None:
                        args = (
                            *args[:accepts_timeout],
                            limit,
                            *args[accepts_timeout + 1 :],
                        )
                else:
                    kwargs["timeout"] = limit
            with self._watchdog.waiting():
                return found(*args, **kwargs)

        return call


@cache
def _position_of_timeout(group: type, name: str) -> int | None:
    """Where a method has its ``timeout``, not counting self; None if nowhere."""
    names = list(inspect.signature(getattr(group, name)).parameters)
    return names.index("timeout") - 1 if "timeout" in names else None


class Mailbox:
    """An async actor between the ranks and the driver: what they say, in order."""

    def __init__(self) -> None:
        self._said: list[Report | Silence] = []
        self._arrived = asyncio.Event()
        self._ended = False
        self._stop = False

    async def post(self, report: Report) -> bool:
        """Leave a report; whether the run is to end early."""
        self._said.append(report)
        self._arrived.set()
        return self._stop

    async def silent(self, silence: Silence) -> None:
        self._said.append(silence)
        self._arrived.set()

    async def take(self) -> list[Report | Silence]:
        """All that is new; waits for it, unless there will be no more."""
        await self._arrived.wait()
        said, self._said = self._said, []
        if not self._ended:
            self._arrived.clear()
        return said

    async def stop(self) -> None:
        """Tell rank 0, with its next report, that the run ends early."""
        self._stop = True

    async def end(self) -> None:
        """No more will come."""
        self._ended = True
        self._arrived.set()
