"""``train.run``: a loop on several ranks, its reports, checkpoints and failures."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import skate
from skate.collective import GroupSpec, create_group
from skate.exceptions import ActorDiedError, RankDiedError, SkateError

from . import checkpoint as checkpoints
from .context import Context, set_context

LAST_REPORTS_S = 0.5  # to wait for them at the end: they have been sent already


@dataclass
class Result:
    """How a training run ended.

    Attributes:
        metrics: rank 0's last report.
        history: all of rank 0's reports, oldest first.
        checkpoint: the last one reported; None if there was none.
        path: where it was written; None without ``checkpoint_dir``.
    """

    metrics: Mapping[str, Any] = field(default_factory=dict)
    history: list[Mapping[str, Any]] = field(default_factory=list)
    checkpoint: Any = None
    path: Path | None = None


class Rank:
    """An actor that runs the loop as one rank of the group."""

    def run(
        self,
        loop: Callable[..., Any],
        config: Any,
        group: GroupSpec,
        rank: int,
        checkpoint: Any,
        mailbox: Any,
    ) -> None:
        member = group.join(rank)

        def post(metrics: Mapping[str, Any], checkpoint: Any) -> None:
            skate.get(mailbox.post.remote(dict(metrics), checkpoint))

        set_context(Context(member, checkpoint, post))
        try:
            loop(config) if inspect.signature(loop).parameters else loop()
        finally:
            # On failure the other ranks learn of it here, at their next collective.
            member.close()


class Mailbox:
    """An async actor between rank 0 and the driver: reports, in order."""

    def __init__(self) -> None:
        self._reports: deque[tuple[dict[str, Any], Any]] = deque()
        self._arrived = asyncio.Event()
        self._ended = False

    async def post(self, metrics: dict[str, Any], checkpoint: Any) -> None:
        self._reports.append((metrics, checkpoint))
        self._arrived.set()

    async def take(self) -> list[tuple[dict[str, Any], Any]]:
        """All new reports; waits for one, unless there will be no more."""
        await self._arrived.wait()
        reports = list(self._reports)
        self._reports.clear()
        if not self._ended:
            self._arrived.clear()
        return reports

    async def end(self) -> None:
        """No more reports will come."""
        self._ended = True
        self._arrived.set()


def run(
    loop: Callable[..., Any],
    num_workers: int,
    *,
    config: Any = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    max_failures: int = 0,
    on_report: Callable[[Mapping[str, Any], Any], None] | None = None,
) -> Result:
    """Run ``loop`` on ``num_workers`` ranks, each an actor, joined in one group.

    Args:
        loop: called as ``loop()``, or ``loop(config)`` if it has a parameter. It
            finds its rank and the collectives in :func:`skate.train.context`.
        checkpoint_dir: where the last reported checkpoint is kept; while the run goes
            on it may be a second old.
        resume: begin from the checkpoint there, if there is one.
        max_failures: how often the ranks are started again, from the last
            checkpoint, after one of them has failed.
        on_report: called in the driver with each report of rank 0: its metrics and
            its checkpoint or None.

    Returns:
        A :class:`Result`, when every rank's loop has returned.

    Raises:
        ValueError: ``num_workers`` is below 1, or ``resume`` without a directory.
        ActorDiedError: a rank's process ended, more often than ``max_failures``.
        Exception: what a loop raised, as a TaskError too. Every rank has ended.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers={num_workers!r}; expected at least 1.")
    if resume and checkpoint_dir is None:
        raise ValueError("resume=True needs checkpoint_dir, to resume from.")
    directory = None if checkpoint_dir is None else Path(checkpoint_dir)
    saver = checkpoints.Saver(directory)
    result = Result()
    if resume and directory is not None:
        result.checkpoint = checkpoints.load(directory)

    def record(metrics: Mapping[str, Any], checkpoint: Any) -> None:
        result.metrics = metrics
        result.history.append(metrics)
        if checkpoint is not None:
            result.checkpoint = checkpoint
            saver.offer(checkpoint, time.monotonic())
        if on_report is not None:
            on_report(metrics, checkpoint)

    failures = 0
    while True:
        try:
            _attempt(loop, num_workers, config, result.checkpoint, record)
        except SkateError:
            failures += 1
            if failures > max_failures:
                raise
        else:
            return result
        finally:  # Ctrl-C included
            saver.flush()
            result.path = saver.path


def _attempt(
    loop: Callable[..., Any],
    num_workers: int,
    config: Any,
    checkpoint: Any,
    record: Callable[[Mapping[str, Any], Any], None],
) -> None:
    """Start all ranks, pass on their reports, and end them whatever happens."""
    group = create_group(num_workers)
    mailbox: Any = skate.remote(Mailbox).remote()
    ranks: list[Any] = [skate.remote(Rank).remote() for _ in range(num_workers)]
    running = [
        actor.run.remote(loop, config, group, rank, checkpoint, mailbox)
        for rank, actor in enumerate(ranks)
    ]
    reports = mailbox.take.remote()

    def last_reports() -> None:
        mailbox.end.remote()
        # The call that waits may hold some; what came after it is in the next.
        for last in (reports, mailbox.take.remote()):
            for report in skate.get(last, timeout=LAST_REPORTS_S):
                record(*report)

    try:
        while running:
            ready, _ = skate.wait([reports, *running], num_returns=1)
            if ready == [reports]:
                for report in skate.get(reports):
                    record(*report)
                reports = mailbox.take.remote()
            else:
                running.remove(ready[0])
                _check(ready[0], running)
        last_reports()
    except BaseException:  # Ctrl-C included: the last checkpoint matters most then
        with contextlib.suppress(SkateError):
            last_reports()
        raise
    finally:
        for actor in [*ranks, mailbox]:
            skate.kill(actor)


def _check(ended: Any, others: list[Any]) -> None:
    """Raise if the rank that ended failed, and then the error that began it."""
    try:
        skate.get(ended)
    except (RankDiedError, ActorDiedError) as error:
        # Often the echo of another rank's error, which tells more.
        for other in skate.wait(others, num_returns=len(others), timeout=1.0)[0]:
            try:
                skate.get(other)
            except (RankDiedError, ActorDiedError):
                continue
            except SkateError as cause:
                raise cause from error
        raise
