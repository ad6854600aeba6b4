"""What the driver does with reports: history, best, early stop, files, evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import skate
from skate.exceptions import CollectiveTimeoutError

from .checkpoint import Offer, Saver, describe, load
from .context import Report
from .progress import Progress
from .rank import Silence
from .result import Metrics, Result

RATE_REPORTS = 20  # over how many reports samples/s is measured


@dataclass(frozen=True)
class Watch:
    """Which metric tells whether a run gets better."""

    metric: str | None = None
    goal: str = "min"
    patience: int | None = None
    evaluate: Callable[[Any], Mapping[str, Any]] | None = None


class Recorder:
    """Takes the reports of rank 0, over all attempts of a run."""

    def __init__(
        self,
        result: Result,
        saver: Saver,
        watch: Watch,
        *,
        first_step: int,
        on_report: Callable[[Metrics, Any], None] | None,
        progress: Progress | None,
    ) -> None:
        self.result = result
        self.stop = False
        #: Training is not to blame for the error then, and need not begin again.
        self.evaluation_failed = False
        self._saver = saver
        self._watch = watch
        self._on_report = on_report
        self._progress = progress
        self._step = first_step
        self._best = math.inf
        self._since_best = 0
        self._to_evaluate: tuple[int, Any] | None = None
        self._evaluating: tuple[int, Any] | None = None
        #: Of the evaluation that is going on.
        self.evaluation: skate.ObjectRef[Any] | None = None
        self._times: list[tuple[float, int]] = []

    def remember_best(self, path: Path) -> None:
        """Go on from the best of the run that is resumed, if there is one."""
        if self._watch.metric is None or not path.exists():
            return
        metrics = describe(path)["metrics"]
        if self._watch.metric in metrics:
            self._judge(metrics, load(path))
            self.result.best_path = path

    def begin(self, world_size: int) -> None:
        """The ranks have been started, perhaps again."""
        self._world_size = world_size
        self._times = []

    def take(self, said: Report | Silence) -> None:
        """Record one report; a rank that hangs is an error."""
        if isinstance(said, Silence):
            raise CollectiveTimeoutError(
                f"rank {said.rank} of {self._world_size} hangs: for "
                f"{said.seconds:.1f} s it has called nothing of train.context(). It is "
                f"at:\n{said.stack}\nGive train.run a longer deadline, or let the loop "
                "call context().alive(), if that is what it should do.",
                [said.rank],
            )
        result, metrics = self.result, said.metrics
        self._step += 1
        result.metrics = metrics
        result.history.append(metrics)
        result.samples_per_s = self._rate(said.samples)
        best = False
        if self._watch.evaluate is None:
            best = self._judge(metrics, said.checkpoint)
        if said.checkpoint is not None:
            result.checkpoint = said.checkpoint
            self._offer(said.checkpoint, metrics, best)
            self._to_evaluate = len(result.history) - 1, said.checkpoint
            self._evaluate_next()
        if self._progress is not None:
            now = time.monotonic()
            self._progress.show(metrics, said.done, result.samples_per_s, now)
        if self._on_report is not None:
            self._on_report(metrics, said.checkpoint)

    def evaluated(self) -> None:
        """The evaluation that was going on has ended."""
        assert self._evaluating is not None
        assert self.evaluation is not None
        (place, checkpoint), ref = self._evaluating, self.evaluation
        self._evaluating = self.evaluation = None
        self.evaluation_failed = True  # unless the next line returns
        metrics = skate.get(ref)
        self.evaluation_failed = False
        self.result.evaluations.append((place, metrics))
        if self._judge(metrics, checkpoint):
            self._offer(checkpoint, metrics, best=True)
        self._evaluate_next()

    def finish(self) -> None:
        """Evaluate the last checkpoint, too."""
        while self.evaluation is not None:
            self.evaluated()

    def _evaluate_next(self) -> None:
        """One at a time; of those that come meanwhile, the newest."""
        if self._watch.evaluate is None or self.evaluation is not None:
            return
        if self._to_evaluate is not None:
            self._evaluating, self._to_evaluate = self._to_evaluate, None
            task = skate.remote(self._watch.evaluate)
            self.evaluation = task.remote(self._evaluating[1])

    def _offer(self, checkpoint: Any, metrics: Metrics, best: bool) -> None:
        offer = Offer(checkpoint, self._step, metrics, best)
        self._saver.offer(offer, time.monotonic())

    def _judge(self, metrics: Metrics, checkpoint: Any) -> bool:
        """Whether these are the best so far."""
        watch = self._watch
        if watch.metric is None:
            return False
        if watch.metric not in metrics:
            if checkpoint is None:
                return False  # a report in between
            raise ValueError(
                f"metric={watch.metric!r} is not in what was reported with a "
                f"checkpoint: {', '.join(map(repr, metrics))}."
            )
        value = float(metrics[watch.metric])
        if watch.goal == "max":
            value = -value
        if value < self._best:
            self._best = value
            self._since_best = 0
            self.result.best = metrics
            self.result.best_checkpoint = checkpoint
            return checkpoint is not None
        self._since_best += 1
        if watch.patience is not None and self._since_best >= watch.patience:
            self.stop = self.result.stopped_early = True
        return False

    def _rate(self, samples: int) -> float | None:
        """Samples a second of all ranks, over the last reports."""
        total = samples + (self._times[-1][1] if self._times else 0)
        self._times = [*self._times[-RATE_REPORTS:], (time.monotonic(), total)]
        (first, before), (last, after) = self._times[0], self._times[-1]
        if after == before or last == first:
            return self.result.samples_per_s
        return (after - before) * self._world_size / (last - first)
