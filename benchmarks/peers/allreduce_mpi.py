"""MPI's Allreduce on NumPy arrays, by mpi4py, in place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from ..allreduce import SIZES, name_of
from ..harness import ROOT, Samples, Timer, Work
from .allreduce_ranks import Reduce, as_cases, measure_all, slowest


def cases(group: str, timer: Timer) -> Iterator[tuple[str, Work]]:
    """Ordinary arrays; their time stands for arrays of the group, too."""
    ranks = int(group)

    def measure() -> dict[str, Samples]:
        mpirun = shutil.which("mpirun")
        if mpirun is None:
            raise RuntimeError("mpirun is not installed")
        command = [mpirun, "-n", str(ranks), "--oversubscribe", "--allow-run-as-root"]
        command += [sys.executable, "-m", "benchmarks.peers.allreduce_mpi"]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-500:])
        samples: dict[str, Samples] = json.loads(done.stdout.splitlines()[-1])
        return samples

    for name, work in as_cases(measure, ranks, (True,)):
        yield name, work
        yield name.removesuffix(", copied"), work


def rank() -> None:
    """One rank, started by mpirun."""
    import numpy as np
    from mpi4py import MPI

    world = MPI.COMM_WORLD

    def reduce(x: Any) -> None:
        world.Allreduce(MPI.IN_PLACE, x)

    def make(size: str) -> Iterator[tuple[str, Any, Reduce]]:
        name = name_of(world.size, size, True)
        yield name, np.ones(SIZES[size], "f4"), reduce

    found = world.gather(measure_all(world.size, make))
    if world.rank == 0:
        print(json.dumps(slowest(found)))


if __name__ == "__main__":
    rank()
