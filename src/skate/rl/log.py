"""What a run tells while it goes on: terminal, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from .run_files import METRICS, TENSORBOARD, read_metrics


class RunLog(contextlib.ExitStack):
    """Writes each report of the learners wherever someone may look for it.

    Args:
        path: the run's directory.
        total_steps: where the progress bar ends.
        resumed_at: environment steps of the checkpoint that the run goes on from, or
            0; reports from after it are dropped, since those steps are done again.
        progress: show a bar, or lines where there is no terminal.
    """

    def __init__(
        self, path: Path, total_steps: int, *, resumed_at: int, progress: bool
    ) -> None:
        super().__init__()
        kept = read_metrics(path, up_to=resumed_at)
        self._file = self.enter_context((path / METRICS).open("w"))
        self._file.writelines(json.dumps(report) + "\n" for report in kept)
        self._board = _tensorboard(path)
        if self._board is not None:
            self.callback(self._board.close)
        self._show = _progress(self, total_steps) if progress else None

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        finite = {
            name: None if isinstance(x, float) and not math.isfinite(x) else x
            for name, x in metrics.items()
        }
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, x in finite.items():
                if x is not None:
                    self._board.add_scalar(name, x, metrics["env_steps"])
        if self._show is not None:
            self._show(metrics)


def _tensorboard(path: Path) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    # The name by which tensorboard is told to leave TensorFlow, which takes seconds to
    # import and prints as it does, alone.
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
    from tensorboard import summary  # type: ignore[import-untyped]

    return summary.Writer(str(path / TENSORBOARD))


def _progress(stack: contextlib.ExitStack, total_steps: int) -> Any:
    """A function that shows one report."""
    if importlib.util.find_spec("rich") is None:
        return _Lines(total_steps)
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        return _Lines(total_steps)
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = stack.enter_context(
        Progress(
            BarColumn(),
            TextColumn("{task.completed:,}/{task.total:,} steps"),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
        )
    )
    task = bar.add_task("starting", total=total_steps)

    def show(metrics: Mapping[str, Any]) -> None:
        bar.update(
            task, completed=metrics["env_steps"], description=_described(metrics)
        )

    return show


class _Lines:
    """A line for each tenth of the run."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._next = 0.0

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        done = metrics["env_steps"] / self._total_steps
        if done >= self._next:
            print(
                f"{metrics['env_steps']:>9,} steps  {_described(metrics)}", flush=True
            )
            self._next = done + 0.1


def _described(metrics: Mapping[str, Any]) -> str:
    speed = metrics["env_steps"] / metrics["wall_s"]
    # No episode may have ended yet.
    known = math.isfinite(metrics["mean_return"])
    mean = f"{metrics['mean_return']:8.1f}" if known else "       -"
    lag = f"  lag {metrics['policy_lag']:.1f}" if "policy_lag" in metrics else ""
    return f"return {mean}{lag}  {speed:,.0f} steps/s"
