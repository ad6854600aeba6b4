"""What does skate cost on a Ray cluster, beside the same program written for Ray?

Both run in one process, on one Ray, and take turns call by call: whatever the machine
does meanwhile falls on both. `python -m benchmarks.ray_translation --help`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .harness import RESULTS, environment

AT_MOST = 1.05  # times the cost of the same program on Ray
LARGE = 100_000_000  # bytes
BATCH = 100  # calls in flight

Work = Callable[[], object]


@dataclass
class Pair:
    """One case: the same work twice, and what each turn took."""

    name: str
    operations: int  # operations in one turn
    skate: Work
    ray: Work
    took: dict[str, list[float]] = field(
        default_factory=lambda: {"skate": [], "ray": []}
    )
    cpu: dict[str, float] = field(default_factory=lambda: {"skate": 0, "ray": 0})

    def take_turns(self, seconds: float) -> None:
        """Alternate, each going first every other time."""
        works = {"skate": self.skate, "ray": self.ray}
        for _ in range(2):
            for work in works.values():
                work()
        end = time.perf_counter() + seconds
        turn = 0
        while time.perf_counter() < end or turn < 6:
            order = list(works) if turn % 2 else list(reversed(works))
            for name in order:
                start, cpu = time.perf_counter(), time.process_time()
                works[name]()
                self.took[name].append(time.perf_counter() - start)
                self.cpu[name] += time.process_time() - cpu
            turn += 1

    def report(self) -> dict[str, Any]:
        us = {
            name: [1e6 * took / self.operations for took in all_]
            for name, all_ in self.took.items()
        }
        medians = {name: statistics.median(all_) for name, all_ in us.items()}
        ratios = sorted(
            own / other for own, other in zip(us["skate"], us["ray"], strict=True)
        )
        return {
            "skate_us": medians["skate"],
            "ray_us": medians["ray"],
            **{
                f"{name}_driver_cpu_us": 1e6 * cpu / self.operations / len(ratios)
                for name, cpu in self.cpu.items()
            },
            "ratio": medians["skate"] / medians["ray"],
            "ratio_of_turns": statistics.median(ratios),
            "ratio_p25": ratios[len(ratios) // 4],
            "ratio_p75": ratios[3 * len(ratios) // 4],
            "turns": len(ratios),
        }


def nothing() -> bytes:
    return b"ok"


def size_of(array: np.ndarray) -> int:
    return array.nbytes


def make(nbytes: int) -> np.ndarray:
    return np.zeros(nbytes, np.uint8)


class Actor:
    def nothing(self) -> bytes:
        return b"ok"

    def size_of(self, array: np.ndarray) -> int:
        return array.nbytes


def pairs() -> Iterator[Pair]:
    """Every case, on Ray's own calls and on skate's."""
    import ray

    import skate

    sides = []
    for api in (skate, ray):
        # Any: two modules with the same names.
        module: Any = api
        remote = module.remote
        actor = remote(Actor).remote()
        sides.append((module, remote(nothing), actor, remote(size_of), remote(make)))

    def both(name: str, per: int, case: Callable[..., object]) -> Pair:
        return Pair(name, per, *(lambda side=side: case(*side) for side in sides))

    array = np.zeros(LARGE, np.uint8)
    stored = [module.put(array) for module, *_ in sides]
    refs = dict(zip((id(side[0]) for side in sides), stored, strict=True))

    yield both("a task, and its result", 1, lambda m, f, *_: m.get(f.remote()))
    yield both(
        "tasks, 100 in flight",
        BATCH,
        lambda m, f, *_: m.get([f.remote() for _ in range(BATCH)]),
    )
    yield both(
        "an actor's call, and its result",
        1,
        lambda m, _, a, *__: m.get(a.nothing.remote()),
    )
    yield both(
        "an actor's calls, 100 in flight",
        BATCH,
        lambda m, _, a, *__: m.get([a.nothing.remote() for _ in range(BATCH)]),
    )
    yield both("put 100 MB", 1, lambda m, *_: m.put(array))
    yield both("get 100 MB", 1, lambda m, *_: m.get(refs[id(m)]))
    yield both(
        "a task that takes a ref of 100 MB",
        1,
        lambda m, _, __, size, ___: m.get(size.remote(refs[id(m)])),
    )
    yield both(
        "an actor that takes 100 MB as they are",
        1,
        lambda m, _, a, *__: m.get(a.size_of.remote(array)),
    )
    yield both(
        "a task that returns 100 MB",
        1,
        lambda m, _, __, ___, make: m.get(make.remote(LARGE)),
    )


def table(cases: dict[str, dict[str, Any]]) -> str:
    rows = ["| case | skate on Ray, us | Ray, us | ratio | of turns (p25 to p75) |"]
    rows.append("|---|---|---|---|---|")
    for name, case in cases.items():
        verdict = "" if case["ratio"] <= AT_MOST else " **over 1.05**"
        rows.append(
            f"| {name} | {case['skate_us']:,.0f} | {case['ray_us']:,.0f} | "
            f"{case['ratio']:.3f}{verdict} | {case['ratio_of_turns']:.3f} "
            f"({case['ratio_p25']:.3f} to {case['ratio_p75']:.3f}) |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="for each case")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    import skate

    cpus = len(os.sched_getaffinity(0))
    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=2_000_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    skate.init("ray")
    cases = {}
    for pair in pairs():
        pair.take_turns(given.seconds)
        cases[pair.name] = pair.report()
        print(f"{pair.name}: {cases[pair.name]['ratio']:.3f}", flush=True)
    skate.shutdown()
    ray.shutdown()
    report = {
        "question": "What does skate cost on Ray, beside the same program for Ray?",
        "command": "python -m benchmarks.ray_translation",
        "settings": {"seconds": given.seconds, "at_most": AT_MOST},
        "environment": environment(),
        "cases": cases,
    }
    given.results.mkdir(parents=True, exist_ok=True)
    path = given.results / "ray_translation.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    machine = report["environment"]
    path.with_suffix(".md").write_text(
        f"# {report['question']}\n\n"
        f"`{report['command']}`, {given.seconds:g} s for each case, {machine['date']}, "
        f"commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores, Ray "
        f"{machine['versions']['ray']}. Both run in one process on one Ray and take "
        "turns. Microseconds are medians of one operation; a ratio above 1.05 is more "
        f"than the translation may cost.\n\n{table(cases)}\n"
    )
    print(table(cases))


if __name__ == "__main__":
    main()
