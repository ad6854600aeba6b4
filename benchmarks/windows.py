"""Windows of several ways to train, in turn: a slow minute falls on each of them."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from skate import train

BOUND = "bound"  # the way whose ranks do not communicate

Times = dict[str, list[float]]  # way -> seconds of an iteration, by window


def options(description: str | None) -> argparse.ArgumentParser:
    """What every such benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--windows", type=int, default=7)
    parser.add_argument("--iterations", type=int, default=4, help="of a window")
    return parser


def measure(
    context: train.Context,
    steps: Mapping[str, Callable[[], object]],
    windows: int,
    iterations: int,
) -> Times:
    """On every rank: the times of the slowest one. The first window warms up."""
    times: Times = {name: [] for name in steps}
    for window in range(-1, windows):
        for name, step in steps.items():
            context.barrier()
            started = time.perf_counter()
            for _ in range(iterations):
                step()
            context.barrier()
            took = np.array([time.perf_counter() - started])
            slowest = float(context.allreduce(took, op="max")[0])
            if window >= 0:
                times[name].append(slowest / iterations)
    return times


def show(times: Mapping[str, Sequence[float]], images: int) -> None:
    """Print images/s, ``images`` an iteration, and the share of the bound."""
    rates = {
        name: [round(images / took, 2) for took in windows]
        for name, windows in times.items()
    }
    for name, windows in rates.items():
        # Of windows that were measured one after the other: a slow minute cancels out.
        pairs = zip(windows, rates[BOUND], strict=True)
        share = statistics.median(ours / bound for ours, bound in pairs)
        middle = statistics.median(windows)
        print(f"{name:<20} {middle:6.2f} images/s  {share:5.2f}  {windows}")
    print(json.dumps(rates))
