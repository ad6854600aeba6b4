"""``train.run``: a loop on several ranks, its reports, checkpoints and failures."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import skate
from skate.collective import create_group
from skate.exceptions import (
    ActorError,
    CollectiveTimeoutError,
    RankDiedError,
    RemoteTraceback,
    SkateError,
    TaskError,
)

from . import checkpoint as checkpoints
from .progress import Progress
from .rank import Assignment, Mailbox, Rank, ServingRank
from .recorder import Recorder, Watch
from .result import Result as Result
from .shard_host import has_processes, hosting_servers

LAST_REPORTS_S = 0.5  # to wait for them at the end: they have been sent already
# To wait for the error that began it, after another rank's echo of it: of a rank that
# is known to have ended, whose error is on its way; or of any.
BLAME_S, BLAME_ANY_S = 10.0, 1.0
SERVING_THREADS = 64  # of a rank that hosts shards: only as many start as wait at once


def run(
    loop: Callable[..., Any],
    num_workers: int,
    *,
    config: Any = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    max_failures: int = 0,
    on_report: Callable[[Mapping[str, Any], Any], None] | None = None,
    seed: int = 0,
    deadline: float | None = None,
    metric: str | None = None,
    goal: str = "min",
    patience: int | None = None,
    evaluate: Callable[[Any], Mapping[str, Any]] | None = None,
    keep_checkpoints: int = 1,
    min_workers: int | None = None,
    resources_per_worker: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Result:
    """Run ``loop`` on ``num_workers`` ranks, each an actor, joined in one group.

    Args:
        loop: called as ``loop()``, or ``loop(config)`` if it has a parameter. It
            finds its rank and the collectives in :func:`skate.train.context`, and
            reports at least once.
        checkpoint_dir: where reported checkpoints are kept; while the run goes on,
            the newest may be a second old.
        resume: begin from the newest checkpoint there, if there is one. The number of
            workers may be another one.
        max_failures: how often the ranks are started again, from the newest
            checkpoint, after one of them has failed.
        on_report: called in the driver with each report of rank 0: its metrics and
            its checkpoint or None.
        seed: from which each rank's random state begins, with its rank.
        deadline: seconds; a rank that calls nothing of its context for so long hangs,
            which is an error on all. None waits for ever.
        metric: the name of the metric by which checkpoints are judged: the best is
            kept beside the newest, as ``best.pkl``.
        goal: of the metric, ``"min"`` or ``"max"``.
        patience: end early when so many reports (or evaluations) have passed without
            an improvement. Loops ask :meth:`Context.should_stop`.
        evaluate: a function of a checkpoint that gives metrics. Runs as a task while
            training goes on, one at a time, and at the end with the last checkpoint.
        keep_checkpoints: how many of the newest to keep.
        min_workers: on how few ranks to go on when, after a failure, the session has
            no longer the resources for all. None: ``num_workers``.
        resources_per_worker: options of the ranks, such as ``{"num_gpus": 1}``.
        progress: show metrics, samples/s and the time left, as far as reports tell.

    Returns:
        A :class:`Result`, when every rank's loop has returned.

    Raises:
        ValueError: an option out of range, or a loop that has never reported.
        CheckpointError: the checkpoint to resume from is damaged, or of another
            version.
        RankDiedError: a rank's process ended, more often than ``max_failures``; see
            ``.rank``. Every rank has ended.
        CollectiveTimeoutError: a rank hangs; see ``.missing_ranks``.
        Exception: what a loop raised, as a TaskError too; its traceback begins with
            the rank.
    """
    _check(num_workers, min_workers, max_failures, keep_checkpoints, deadline)
    if goal not in ("min", "max"):
        raise ValueError(f'goal={goal!r}; expected "min" or "max".')
    if patience is not None and (metric is None or patience < 1):
        raise ValueError(f"patience={patience!r} needs a metric, and to be at least 1.")
    if resume and checkpoint_dir is None:
        raise ValueError("resume=True needs checkpoint_dir, to resume from.")
    directory = None if checkpoint_dir is None else Path(checkpoint_dir)
    result = Result()
    first_step = 0
    if resume and directory is not None:
        result.checkpoint = checkpoints.load(directory)
        if result.checkpoint is not None:
            first_step = int(checkpoints.describe(directory)["step"])
            result.path = directory / checkpoints.NAME
    resumed = result.checkpoint is not None
    with contextlib.ExitStack() as stack:
        saver = checkpoints.Saver(
            directory, keep_checkpoints, anew=result.checkpoint is None
        )
        stack.callback(saver.close)
        recorder = Recorder(
            result,
            saver,
            Watch(metric, goal, patience, evaluate),
            first_step=first_step,
            on_report=on_report,
            progress=stack.enter_context(Progress(time.monotonic()))
            if progress
            else None,
        )
        if resumed and directory is not None:
            recorder.remember_best(directory / checkpoints.BEST)
        job = _Job(loop, config, seed, deadline, dict(resources_per_worker or {}))
        world_size = num_workers
        while True:
            try:
                _attempt(job, world_size, recorder)
                recorder.finish()
            except SkateError:
                result.failures += 1
                if recorder.evaluation_failed or result.failures > max_failures:
                    raise
                world_size = fitting(
                    num_workers, min_workers, job.resources, skate.cluster_resources()
                )
            else:
                break
            finally:  # Ctrl-C included
                saver.flush()
                result.path = saver.path or result.path
                result.best_path = saver.best_path or result.best_path
    if not result.history and not resumed:
        raise ValueError(
            "the loop has returned without a report: its result is lost. Call "
            "skate.train.context().report(metrics, checkpoint=...) in it."
        )
    return result


@dataclass(frozen=True)
class _Job:
    """What all attempts have in common."""

    loop: Callable[..., Any]
    config: Any
    seed: int
    deadline: float | None
    resources: dict[str, Any]


def _check(
    num_workers: int,
    min_workers: int | None,
    max_failures: int,
    keep: int,
    deadline: float | None,
) -> None:
    if num_workers < 1:
        raise ValueError(f"num_workers={num_workers!r}; expected at least 1.")
    if min_workers is not None and not 1 <= min_workers <= num_workers:
        raise ValueError(
            f"min_workers={min_workers!r}; expected 1 to num_workers, {num_workers}."
        )
    if max_failures < 0:
        raise ValueError(f"max_failures={max_failures!r}; expected 0 or more.")
    if keep < 1:
        raise ValueError(f"keep_checkpoints={keep!r}; expected at least 1.")
    if deadline is not None and not deadline > 0:
        raise ValueError(f"deadline={deadline!r}; expected seconds, or None.")


def fitting(
    num_workers: int,
    min_workers: int | None,
    needs: Mapping[str, Any],
    there: Mapping[str, float],
) -> int:
    """How many ranks to start on what the session has."""
    if min_workers is None:
        return num_workers
    wanted = {"CPU": needs.get("num_cpus", 0), "GPU": needs.get("num_gpus", 0)}
    wanted |= needs.get("resources") or {}
    fit = [int(there.get(name, 0) // n) for name, n in wanted.items() if n]
    return max(min_workers, min([num_workers, *fit]))


def _attempt(job: _Job, world_size: int, recorder: Recorder) -> None:
    """Start all ranks, pass on their reports, and end them whatever happens."""
    group = create_group(world_size)
    recorder.begin(world_size)
    mailbox: Any = skate.remote(Mailbox).remote()
    options = dict(job.resources)
    # Calls of a rank that serves run in threads; any other has its loop to itself.
    serving = hosting_servers()
    groups = {"serving": SERVING_THREADS}
    rank_class: Any = (
        skate.remote(concurrency_groups=groups)(ServingRank)
        if serving
        else skate.remote(Rank)
    )
    if options:
        rank_class = rank_class.options(**options)
    actors: list[Any] = [rank_class.remote() for _ in range(world_size)]
    hosts = tuple(actors) if serving else ()
    checkpoint = recorder.result.checkpoint
    running = {
        actor.run.remote(
            job.loop,
            job.config,
            Assignment(group, rank, job.seed, job.deadline, has_processes(), hosts),
            checkpoint,
            mailbox,
        ): rank
        for rank, actor in enumerate(actors)
    }
    news = mailbox.take.remote()

    def last_news() -> None:
        mailbox.end.remote()
        # The call that waits may hold some; what came after it is in the next.
        for last in (news, mailbox.take.remote()):
            for said in skate.get(last, timeout=LAST_REPORTS_S):
                recorder.take(said)

    try:
        while running:
            waiting = [news, *running]
            if recorder.evaluation is not None:
                waiting.append(recorder.evaluation)
            (ready,), _ = skate.wait(waiting, num_returns=1)
            if ready is news:
                for said in skate.get(news):
                    recorder.take(said)
                news = mailbox.take.remote()
            elif ready in running:
                _check_ended(ready, running, world_size)
            else:
                recorder.evaluated()
            if recorder.stop:
                mailbox.stop.remote()
        last_news()
    except BaseException as error:  # Ctrl-C included: the last checkpoint matters then
        try:
            last_news()
        except CollectiveTimeoutError as told:  # where the rank hangs, by itself
            if isinstance(error, CollectiveTimeoutError):
                raise told from error
        except SkateError:
            pass  # there is nothing more to be learnt
        raise
    finally:
        for actor in [*actors, mailbox]:
            skate.kill(actor)


def _check_ended(ended: Any, running: dict[Any, int], world_size: int) -> None:
    """Raise if the rank that ended failed, and then the error that began it."""
    rank = running.pop(ended)
    try:
        skate.get(ended)
    except (RankDiedError, ActorError) as error:
        # Often the echo of another rank's error, which tells more.
        blamed = getattr(error, "rank", None)
        others = [ref for ref, r in running.items() if blamed in (None, r)]
        if isinstance(error, ActorError) or blamed == rank:
            others = []  # its own
        if others:
            patience = BLAME_ANY_S if blamed is None else BLAME_S
            for other in skate.wait(others, len(others), timeout=patience)[0]:
                _check_ended(other, {other: running[other]}, world_size)
        if isinstance(error, ActorError):
            raise RankDiedError(
                f"rank {rank} of {world_size} died: {error}", rank
            ) from error
        raise
    except TaskError as error:
        raise _of_rank(error, rank, world_size) from None


def _of_rank(error: TaskError, rank: int, world_size: int) -> TaskError:
    """The same error; its traceback begins with the rank that raised it."""
    text = f"rank {rank} of {world_size}:\n{error.remote_traceback}"
    error.remote_traceback = text
    error.__cause__ = RemoteTraceback(text)
    return error
