"""Bulk-synchronous simulation by MPI: every rank one run, then a barrier."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from mpi4py import MPI

from . import workload


def main() -> None:
    """``python -m ... CASE-FUNCTION MEAN DRAWS INTO``; started by mpirun."""
    function_name, mean, draws, into = sys.argv[1:5]
    function = getattr(workload, function_name)
    comm = MPI.COMM_WORLD
    rank, n = comm.Get_rank(), comm.Get_size()
    function(2)
    samples = []
    for seed in range(int(draws)):
        if float(mean):
            lengths = workload.lognormal_steps(seed, 3 * n, float(mean))
        else:
            lengths = workload.uniform_steps(seed, 1000)
        _wait_for_all(comm)
        began = time.perf_counter()
        cpu_s = 0.0
        for first in range(0, len(lengths), n) if float(mean) else [0]:
            # With many short runs: a static split, and one barrier at the end.
            mine = (
                lengths[first + rank : first + rank + 1]
                if float(mean)
                else lengths[rank::n]
            )
            for steps in mine:
                cpu_s += function(steps)[1]
            _wait_for_all(comm)
        wall_s = time.perf_counter() - began
        total = comm.reduce(cpu_s)
        samples.append({"wall_s": wall_s, "cpu_s": total, "steps": sum(lengths)})
    if rank == 0:
        Path(into).write_text(json.dumps(samples))


def _wait_for_all(comm: MPI.Intracomm) -> None:
    # Asleep: ranks that spin take the cores from those that simulate.
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.0005)


if __name__ == "__main__":
    main()
