"""Simulations of unequal length: how long do they take, here and elsewhere?

Repeats table 4 of the Ray paper beside its peers: ``skate bench simulation``. Every
peer and case runs in a process of its own and leaves a piece in ``--pieces``; with
``--keep``, pieces that are there already are not measured again, so that the whole may
be measured in parts. The report has the exact schedules of the same lengths beside the
times.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .harness import (
    MARK,
    RESULTS,
    ROOT,
    environment,
    memory_bytes,
    refuse_debug_build,
)
from .simulators import report, workload
from .simulators.peers import MPI, POOLS, Pool, mpi_command

START_LIMIT_S = 120
PIECES = ROOT / "build" / "benchmarks" / "simulation"
SKATE = ("skate", "skate_cost", "skate_learn")
POOL_PEERS = ("ray", "pool", "executor", "loky", "dask")


@dataclass(frozen=True)
class Case:
    """A row: ``n`` workers, and for each draw a list of lengths in steps."""

    name: str
    n: int
    function: str
    peers: tuple[str, ...]
    mean: float = 0.0  # of lognormal lengths, 3n runs
    runs: int = 1000  # of other lengths
    step_s: float | None = None  # None: as quick as the machine is

    @property
    def cores(self) -> int:
        """What the case can use of the machine; ``n`` where simulators only wait."""
        return self.n if self.step_s else min(self.n, len(os.sched_getaffinity(0)))

    def lengths(self, seed: int) -> list[int]:
        """Of one draw."""
        if self.mean:
            return workload.lognormal_steps(seed, 3 * self.n, self.mean)
        if self.name.startswith("tiny"):
            return [5] * self.runs
        return workload.uniform_steps(seed, self.runs)


def _pendulum(name: str, n: int, peers: Sequence[str], **options: Any) -> Case:
    return Case(name, n, "simulate_pendulum", tuple(peers), **options)


def _waiting(n: int, peers: Sequence[str]) -> Case:
    return Case(
        f"waiting-{n}",
        n,
        "simulate_waiting",
        tuple(peers),
        mean=workload.WAIT_STEPS,
        step_s=workload.WAIT_STEP_S,
    )


CASES = (
    _pendulum("coarse-1", 1, ("skate", "loop", MPI, *POOL_PEERS), mean=3000),
    _pendulum("coarse-2", 2, (*SKATE, MPI, *POOL_PEERS), mean=3000),
    _pendulum("fine-2", 2, ("skate", MPI, *POOL_PEERS)),
    _pendulum("tiny-2", 2, ("skate", *POOL_PEERS), runs=2000),
    _waiting(16, (*SKATE, MPI, *POOL_PEERS)),
    _waiting(64, (*SKATE, MPI, *POOL_PEERS)),
    # Ray needs 55 MB a worker, and dask as many: 14 GB for 256 are not tried.
    _waiting(256, (*SKATE, MPI, "pool", "executor")),
    Case("es-2", 2, "es", ("skate", "ray", "ray_by_hand", "loop", "pool")),
)
BY_NAME = {case.name: case for case in CASES}


# One piece, in its own process --------------------------------------------------------


def measure(case: Case, peer: str, draws: int, into: Path) -> None:
    """Start ``peer``, run every draw, and leave the figures in ``into``."""
    if peer == MPI:
        _measure_mpi(case, draws, into)
        return
    began = time.perf_counter()
    pool = POOLS[peer](1 if peer == "loop" else case.n)
    try:
        waits = case.step_s is not None
        # Long enough that no worker takes two of them.
        seconds = 0.2 if case.n <= 16 else 1.0
        if peer in ("ray", "dask") and case.n > 16:
            seconds = 3.0
        ready = workload.hold_only if waits else workload.hold
        list(pool.run(ready, [seconds] * case.n))
        start_s = time.perf_counter() - began - seconds
        piece: dict[str, Any] = {
            "start_s": start_s,
            "memory_bytes": memory_bytes(),
            "draws": [_draw(case, peer, pool, seed) for seed in range(draws)],
        }
    finally:
        pool.close()
    into.write_text(json.dumps(piece))


def _draw(case: Case, peer: str, pool: Pool, seed: int) -> dict[str, float]:
    lengths = case.lengths(seed)
    if case.function == "es":
        return _es(pool, lengths, seed)
    function = getattr(workload, case.function)
    if peer == "skate_learn":
        list(pool.run(function, lengths))  # the earlier pass
    elif case.step_s is None and seed == 0:
        list(pool.run(function, lengths[: 3 * case.n]))
    return _timed(lambda: list(pool.run(function, lengths)))


def _es(pool: Pool, lengths: Sequence[int], seed: int) -> dict[str, float]:
    configs = list(enumerate(lengths))
    if seed == 0:
        list(pool.run_es(workload.draw_weights(0), configs[:100]))
    return _timed(lambda: list(pool.run_es(workload.draw_weights(seed), configs)))


def _timed(work: Callable[[], list[workload.Done]]) -> dict[str, float]:
    began = time.perf_counter()
    done = work()
    wall_s = time.perf_counter() - began
    return {
        "wall_s": wall_s,
        "steps": sum(steps for steps, _ in done),
        "cpu_s": sum(cpu_s for _, cpu_s in done),
        "runs": len(done),
    }


def _measure_mpi(case: Case, draws: int, into: Path) -> None:
    samples = into.with_suffix(".samples")
    samples.unlink(missing_ok=True)
    arguments = [case.function, str(case.mean), str(draws), str(samples)]
    # Longest possible: every round as long as three times its mean.
    limit_s = START_LIMIT_S + draws * 60
    subprocess.run(mpi_command(case.n, arguments), check=True, timeout=limit_s)
    into.write_text(json.dumps({"draws": json.loads(samples.read_text())}))
    samples.unlink()


# All pieces ---------------------------------------------------------------------------


def _ask(case: Case, peer: str, draws: int, folder: Path) -> None:
    into = folder / f"{case.name}.{peer}.json"
    failed = into.with_suffix(".failed")
    failed.unlink(missing_ok=True)
    into.unlink(missing_ok=True)
    print(f"{case.name}: {peer}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "benchmarks.simulation", "--peer", peer]
    command += ["--case", case.name, "--draws", str(draws), "--into", str(into)]
    env = {**os.environ, MARK: f"{os.getpid()}-{peer}-{case.name}"}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_LIMIT_S + draws * 60,
        )
        words = done.stderr.strip().splitlines()[-1:] or ["no word"]
    except subprocess.TimeoutExpired:
        words = [f"not finished after {START_LIMIT_S + draws * 60} s"]
    if not into.exists():
        failed.write_text(words[0].replace(f"{ROOT}/", ""))
        print(f"  failed: {words[0]}", file=sys.stderr)


def main() -> int:
    """Measure the pieces and write the report, or (as a child) measure one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    peers = sorted({peer for case in CASES for peer in case.peers})
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=list(BY_NAME), default=[*BY_NAME])
    parser.add_argument("--peers", nargs="+", choices=peers, default=peers)
    parser.add_argument("--keep", action="store_true", help="measure what is missing")
    parser.add_argument("--pieces", type=Path, default=PIECES, help="a folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="a folder")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peer:
        measure(BY_NAME[asked.case], asked.peer, asked.draws, asked.into)
        return 0
    refuse_debug_build()
    asked.pieces.mkdir(parents=True, exist_ok=True)
    for name in asked.cases:
        for peer in BY_NAME[name].peers:
            there = (asked.pieces / f"{name}.{peer}.json").exists()
            if peer in asked.peers and not (asked.keep and there):
                _ask(BY_NAME[name], peer, asked.draws, asked.pieces)
    answers = {case.name: _answers(case, asked.pieces) for case in CASES}
    report.write(answers, environment(), asked.results)
    print((asked.results / "simulation.md").read_text())
    return 0


def _answers(case: Case, folder: Path) -> dict[str, Any]:
    """What the report needs of a case: every peer's figures, and the exact ones."""
    given: dict[str, Any] = {}
    for peer in case.peers:
        path = folder / f"{case.name}.{peer}.json"
        if path.exists():
            given[peer] = json.loads(path.read_text())
        elif path.with_suffix(".failed").exists():
            given[peer] = {"failed": path.with_suffix(".failed").read_text()}
        else:
            given[peer] = {"failed": "not run"}
    draws = max((len(piece.get("draws", ())) for piece in given.values()), default=0)
    exact = []
    for seed in range(draws):
        lengths = case.lengths(seed)
        exact.append(
            {
                name: schedule(lengths, case.n)
                for name, schedule in workload.SCHEDULES.items()
            }
            | {"steps": sum(lengths)}
        )
    mean = {
        name: statistics.mean(draw["steps"] / case.n / draw[name] for draw in exact)
        for name in workload.SCHEDULES
        if exact
    }
    return {
        "n": case.n,
        "cores": case.cores,
        "step_s": case.step_s,
        "exact": exact,
        "exact_useful": mean,
        "peers": given,
    }


if __name__ == "__main__":
    sys.exit(main())
