"""A picture of a run: one row a worker, one bar a simulation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ledger import Span

_MOST_LABELS = 32  # more rows than this have no room for names


def gantt(
    spans: Sequence[Span], path: str | Path, *, useful: float | None = None
) -> None:
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
    workers = {span.worker for span in spans}
    height = min(12.0, 1.2 + 0.3 * len(workers))
    figure = Figure(figsize=(10, height), layout="constrained")
    axes = figure.subplots()
    draw(axes, spans)
    title = f"{len(spans)} simulations on {len(workers)} workers"
    if useful is not None:
        title += f", {useful:.0%} of their time useful"
    axes.set_title(title)
    figure.savefig(path)


def draw(axes: Any, spans: Sequence[Span]) -> None:
    """The bars, into ``axes`` of matplotlib."""
    workers = sorted({span.worker for span in spans})
    few = len(workers) <= _MOST_LABELS
    for row, worker in enumerate(workers):
        own = [span for span in spans if span.worker == worker]
        axes.broken_barh(
            [(span.start, span.end - span.start) for span in own],
            (row - 0.4, 0.8),
            facecolors=["tab:red" if span.failed else "tab:blue" for span in own],
            edgecolor="white",
            linewidth=0.5 if few else 0.1,
        )
    if few:
        names = [f"worker {i}" for i in range(len(workers))]
        axes.set_yticks(range(len(workers)), names)
    else:
        axes.set_ylabel("worker")
    axes.set_xlabel("seconds since the start")
