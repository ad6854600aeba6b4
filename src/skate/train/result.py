"""What comes of a training run, and the picture of its curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Metrics = Mapping[str, Any]


@dataclass
class Result:
    """How a training run ended.

    Attributes:
        metrics: rank 0's last report.
        history: all of rank 0's reports, oldest first.
        checkpoint: the last one reported; None if there was none.
        path: where it was written; None without ``checkpoint_dir``.
        best: the metrics of the best report, or evaluation; None without ``metric``.
        best_checkpoint: what was reported then.
        best_path: where that was written.
        evaluations: for each, the number of the report whose checkpoint was
            evaluated, and its metrics.
        stopped_early: the metric had not improved for ``patience`` reports.
        samples_per_s: of all ranks, if reports told ``samples``; else None.
        failures: how often the ranks were started again.
    """

    metrics: Metrics = field(default_factory=dict)
    history: list[Metrics] = field(default_factory=list)
    checkpoint: Any = None
    path: Path | None = None
    best: Metrics | None = None
    best_checkpoint: Any = None
    best_path: Path | None = None
    evaluations: list[tuple[int, Metrics]] = field(default_factory=list)
    stopped_early: bool = False
    samples_per_s: float | None = None
    failures: int = 0

    def plot(self, path: str | Path) -> Path:
        """Draw every number of the history over the reports, into a picture.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: no report had a number.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "Result.plot needs matplotlib: pip install matplotlib"
            ) from error
        curves = self._curves()
        if not curves:
            raise ValueError("there is nothing to draw: no report had a number in it.")
        columns = min(len(curves), 3)
        rows = math.ceil(len(curves) / columns)
        figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
        for place, (name, lines) in enumerate(curves.items(), 1):
            axes = figure.add_subplot(rows, columns, place)
            for label, x, y in lines:
                axes.plot(x, y, label=label, marker="." if len(x) < 30 else None)
            axes.set_title(name)
            axes.set_xlabel("report")
            axes.grid(alpha=0.3)
            if len(lines) > 1:
                axes.legend()
        path = Path(path)
        figure.savefig(path, dpi=120)
        return path

    def _curves(self) -> dict[str, list[tuple[str, Sequence[int], list[float]]]]:
        curves: dict[str, list[tuple[str, Sequence[int], list[float]]]] = {}
        for label, points in (
            ("training", list(enumerate(self.history))),
            ("evaluation", self.evaluations),
        ):
            names = dict.fromkeys(name for _, metrics in points for name in metrics)
            for name in names:
                known = [(i, m[name]) for i, m in points if is_number(m.get(name))]
                if known:
                    x, y = zip(*known, strict=True)
                    line = (label, list(x), [float(value) for value in y])
                    curves.setdefault(name, []).append(line)
        return curves


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
