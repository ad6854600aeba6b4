"""A picture of a run: one row a worker, one bar a simulation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .run import Span


def gantt(spans: list[Span], path: str | Path) -> None:
    """Draw ``spans`` into ``path``; its suffix chooses the format.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: nothing has finished yet.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Run.plot needs matplotlib, which is not installed: pip install 'skate[rl]'"
        ) from error
    if not spans:
        raise ValueError("nothing to plot: iterate the run first.")
    workers = sorted({span.worker for span in spans})
    figure = Figure(figsize=(10, 1.2 + 0.3 * len(workers)), layout="constrained")
    axes = figure.subplots()
    for row, worker in enumerate(workers):
        bars = [(s.start, s.end - s.start) for s in spans if s.worker == worker]
        axes.broken_barh(bars, (row - 0.4, 0.8), edgecolor="white", linewidth=0.5)
    axes.set_yticks(range(len(workers)), [f"worker {i}" for i in range(len(workers))])
    axes.set_xlabel("seconds since the start")
    axes.set_title(f"{len(spans)} simulations")
    figure.savefig(path)
