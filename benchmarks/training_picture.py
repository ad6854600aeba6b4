"""What was measured of training, and beside it what a small model makes of that.

    python -m benchmarks.training_picture    # from results/training.json

The model is for machines of two workers each, as the one that was measured. An
iteration takes what it took without communication, and what exchanging gradients within
a machine added to that (both measured), and then a ring of allreduce between machines,
none of it hidden behind backward (assumed: 25 Gbit/s each way, 50 us). A sharded
parameter server moves as many bytes a machine as the ring. What the software of either
spends on the way between machines is left out: nothing here has measured it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PER_MACHINE = 2
GRADIENT_BYTES = 4 * 44_549_160
NETWORK = 25e9 / 8  # bytes a second of a machine, each way
LATENCY = 50e-6  # seconds, from machine to machine
WORKERS = (1, 2, 4, 8, 16, 32, 64)
BATCH = {"comm": 2, "heavy": 8}  # images of a worker's iteration
TITLES = {
    "comm": "batch 2 at 3x64x64: communication decides",
    "heavy": "batch 8 at 3x224x224: computation decides",
}
# name -> peer, and the case after its group's name
WAYS = {
    "skate, parameter server": ("training_skate", ", parameter server"),
    "skate, allreduce": ("training_skate", ", allreduce"),
    "DDP over gloo": ("training_ddp", ""),
    "DDP, views of buckets": ("training_ddp", ", views of buckets"),
    "Ray Train": ("training_ray", ""),
    "parameter server on Ray": ("training_ray", ", parameter server on actors"),
}
BOUND = "do not communicate"


@dataclass(frozen=True)
class Measured:
    """Images/s of two workers."""

    median: float
    low: float
    high: float


def measured(report: Mapping[str, Any], group: str) -> dict[str, Measured]:
    """What the report has of a group, the bound first; empty without the bound."""
    places = {BOUND: ("training_bound", ""), **WAYS}
    found = {}
    for name, (peer, suffix) in places.items():
        answer = report["cases"].get(group + suffix, {}).get(peer)
        if answer is not None:
            found[name] = Measured(answer["median"], answer["p5"], answer["p95"])
    return found if BOUND in found else {}


def projected(alone_s: float, within_s: float, workers: int, batch: int) -> float:
    """Images/s of all workers.

    Args:
        alone_s: an iteration without communication.
        within_s: what exchanging gradients with the other worker of a machine adds.
    """
    machines = -(-workers // PER_MACHINE)
    between_s = 2 * (machines - 1) / machines * GRADIENT_BYTES / NETWORK
    between_s += 2 * (machines - 1) * LATENCY
    if workers == 1:
        within_s = 0.0
    return workers * batch / (alone_s + within_s + between_s)


def projection(found: Mapping[str, Measured], group: str) -> dict[str, list[float]]:
    """By way, images/s for each of ``WORKERS``."""
    images = PER_MACHINE * BATCH[group]
    alone_s = images / found[BOUND].median
    return {
        name: [
            projected(alone_s, images / one.median - alone_s, workers, BATCH[group])
            for workers in WORKERS
        ]
        for name, one in found.items()
        if name != BOUND
    }


def draw(report: Mapping[str, Any], path: Path) -> None:
    """A row for each group that was measured: bars for that, lines for the model.

    Everything is counted from the bound: without it, nothing is drawn.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    groups = [group for group in TITLES if measured(report, group)]
    if not groups:
        path.unlink(missing_ok=True)  # of an earlier report
        return
    figure, rows = pyplot.subplots(
        len(groups), 2, figsize=(11, 3.6 * len(groups)), squeeze=False
    )
    for (bars, lines), group in zip(rows, groups, strict=True):
        found = measured(report, group)
        names = list(found)[::-1]
        colors = {name: f"C{i}" for i, name in enumerate(found)}
        medians = [found[name].median for name in names]
        spread = [
            [found[name].median - found[name].low for name in names],
            [found[name].high - found[name].median for name in names],
        ]
        bars.barh(names, medians, xerr=spread, color=[colors[name] for name in names])
        bars.set_xlabel("images/s, 2 workers; p5 to p95")
        bars.set_title(f"Measured: {TITLES[group]}", fontsize=9)
        for name, rates in projection(found, group).items():
            lines.plot(WORKERS, rates, "--o", ms=3, label=name, color=colors[name])
        perfect = [n * found[BOUND].median / PER_MACHINE for n in WORKERS]
        lines.plot(WORKERS, perfect, ":", color=colors[BOUND], label=BOUND)
        lines.set_xscale("log", base=2)
        lines.set_yscale("log", base=2)
        lines.yaxis.set_major_formatter(ScalarFormatter())
        lines.set_xticks(WORKERS, map(str, WORKERS))
        lines.set_xlabel("workers, 2 a machine, 25 Gbit/s between machines")
        lines.set_ylabel("images/s")
        lines.set_title("Not measured: a model fed with these costs", fontsize=9)
        lines.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def redraw(results: Path) -> None:
    """Draw ``training.png`` beside ``training.json``."""
    report = json.loads((results / "training.json").read_text())
    draw(report, results / "training.png")


if __name__ == "__main__":
    from .harness import RESULTS

    redraw(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)
