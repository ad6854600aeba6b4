"""What the machine itself can do: no engine is faster than these.

The floor of a synchronous call is a round trip between two processes that spin; the
floor of a large put is a copy into memory that is already mapped and warm.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..harness import ROOT, Samples, Timer, Work
from .task_api import MB


def cases(group: str, timer: Timer) -> Iterator[tuple[str, Work]]:
    """One floor for the calls, one for the objects."""
    if group == "calls":
        yield "spinning ping-pong", _ping_pong
    elif group == "objects":
        source, target = np.ones(100 * MB // 8), np.zeros(100 * MB // 8)
        yield (
            "warm memcpy of 100 MB",
            lambda: timer.calls(lambda: np.copyto(target, source)),
        )


def _ping_pong() -> Samples:
    program = _compile(Path(__file__).with_name("ping_pong.cpp"))
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    return [float(line) for line in done.stdout.split()]


def _compile(source: Path) -> Path:
    program = ROOT / "build" / "benchmarks" / source.stem
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CXX", "c++")
        command = [compiler, "-O3", "-std=c++20", str(source), "-o", str(program)]
        subprocess.run(command, check=True)
    return program
