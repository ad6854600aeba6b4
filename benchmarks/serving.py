"""How near does a served model come to the model itself, and what do others reach?

The second experiment of the Ray paper (section 5.2.2, table 3) in one run. Clients on
this machine send batches of 64 states and wait for the answers:

    .venv/bin/python -m benchmarks.serving            # everything, about half an hour
    .venv/bin/python -m benchmarks.serving --peers floor skate_serving --clients 1

A case is a peer, a model, a row, how its states are made, a number of clients and how
many batches each has in flight. Peers take turns in rounds; every case runs in fresh
processes, is warmed up, and its answers are checked.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from . import harness
from .served.models import BATCH, ROWS, Row, calibrate, make, states_of

WARM_S = 0.5
PEERS = (
    "floor",
    "shared_memory",
    "skate_serving",
    "skate_http",
    "ray_actor",
    "uvicorn_peer",
    "zeromq_peer",
)


@dataclass(frozen=True)
class Case:
    """What one measurement does."""

    peer: str
    model: str  # sleep or torch
    row: str
    states: str = "arrays"  # or store: born in shared memory
    clients: int = 1
    in_flight: int = 1
    layers: int = 1  # of the torch model

    @property
    def key(self) -> str:
        return "/".join(map(str, asdict(self).values()))


@dataclass
class Window:
    """What one client saw: when it began and ended, and the latency of each batch."""

    start: float = 0.0
    end: float = 0.0
    latencies: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)  # when each answer came


def drive(client: Any, case: Case, seconds: float) -> Window:
    """Send batch after batch, ``in_flight`` at a time; each is filled anew."""
    row = ROWS[case.row]
    template = states_of(row)
    slots = [client.array(template.shape) for _ in range(case.in_flight + 1)]
    for slot in slots:
        slot[:] = template
    expected = template[:, 0].copy()  # of its own: not spread over all of the states

    def check(outputs: Any) -> None:
        if outputs.shape != (BATCH, 8):
            raise RuntimeError(f"an answer has shape {outputs.shape}")
        if case.model == "sleep" and (outputs[:, 0] != expected).any():
            raise RuntimeError("an answer is not that of its states")

    def rounds(until: float, window: Window) -> None:
        turn = 0
        waiting: list[tuple[Any, float]] = []
        while True:
            now = time.perf_counter()
            if now < until:
                states = slots[turn % len(slots)]
                turn += 1
                if case.model == "torch":
                    states[:] = template  # as any client must, and as the floor does
                waiting.append((client.submit(states), now))
            if not waiting:
                return
            if len(waiting) >= case.in_flight or now >= until:
                answer, since = waiting.pop(0)
                outputs = answer()
                window.ended.append(time.perf_counter())
                window.latencies.append(window.ended[-1] - since)
                check(outputs)
                if now >= until and not waiting:
                    return

    rounds(time.perf_counter() + WARM_S, Window())
    window = Window()
    window.start = time.perf_counter()
    rounds(window.start + seconds, window)
    window.end = time.perf_counter()
    return window


def summarize(case: Case, windows: Sequence[Window], cpu_s: float) -> dict[str, Any]:
    """Rates over the time in which every client was busy."""
    latencies = sorted(x for window in windows for x in window.latencies)
    start = max(window.start for window in windows)
    end = min(window.end for window in windows)
    ended = sum(start < t <= end for window in windows for t in window.ended)
    rate = ended * BATCH / (end - start)
    states = len(latencies) * BATCH
    return {
        "states_per_s": rate,
        "p50_ms": 1e3 * latencies[len(latencies) // 2],
        "p99_ms": 1e3 * latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))],
        "cpu_s_per_1000_states": 1e3 * cpu_s / states,
        "batches": len(latencies),
    }


# One case, in a process of its own ----------------------------------------------------


def cpu_seconds() -> float:
    """Of this process and all that it has started."""
    total = 0.0
    for pid in harness.own_processes():
        try:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                total += int((thread / "schedstat").read_text().split()[0]) / 1e9
        except OSError:
            continue
    return total


def run_case(case: Case, seconds: float) -> dict[str, Any]:
    module = import_module(f"benchmarks.peers.{case.peer}")
    with module.served(case) as peer:
        before = time.perf_counter(), cpu_seconds()
        windows = peer.measure(seconds)
        used = cpu_seconds() - before[1]
        share = seconds / (time.perf_counter() - before[0])
        result = summarize(case, windows, used * share)
        result["memory_mb"] = harness.memory_bytes() / 1e6
    return result


def ask(case: Case, seconds: float) -> dict[str, Any]:
    """Run a case in a fresh process; an error is a result too."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.serving"]
        command += ["--case", json.dumps(asdict(case)), "--into", str(into)]
        command += ["--seconds", str(seconds)]
        env = {
            **os.environ,
            harness.MARK: f"{os.getpid()}-{case.key}",
            "OMP_NUM_THREADS": "1",
        }
        try:
            done = subprocess.run(
                command,
                cwd=harness.ROOT,
                env=env,
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
        except subprocess.TimeoutExpired:
            return {"error": "it did not end within 120 s"}
        if done.returncode != 0:
            return {"error": harness.last_words(done.stderr)}
        answer: dict[str, Any] = json.loads(into.read_text())
        return answer


# The whole question -------------------------------------------------------------------


def cases_of(args: argparse.Namespace, layers: dict[str, int]) -> list[Case]:
    found = []
    for row in args.rows:
        for model in args.models:
            for peer in args.peers:
                module = import_module(f"benchmarks.peers.{peer}")
                for states in module.STATES:
                    for clients in args.clients:
                        for in_flight in args.in_flight:
                            case = Case(
                                peer,
                                model,
                                row,
                                states,
                                clients,
                                in_flight,
                                layers.get(row, 1),
                            )
                            if module.does(case):
                                found.append(case)
    return found


def run(args: argparse.Namespace) -> int:
    harness.refuse_debug_build()
    layers = {}
    if "torch" in args.models:
        layers = {row: calibrate(ROWS[row]) for row in args.rows}
    cases = cases_of(args, layers)
    results: dict[str, list[dict[str, Any]]] = {case.key: [] for case in cases}
    for number in range(1, args.rounds + 1):
        for case in cases:
            print(f"round {number}/{args.rounds}: {case.key}", file=sys.stderr)
            results[case.key].append(ask(case, args.seconds))
    report = {
        "question": __doc__,
        "settings": {"rounds": args.rounds, "seconds": args.seconds},
        "environment": harness.environment(),
        "layers": layers,
        "cases": [
            {**asdict(case), "rounds": results[case.key], **median(results[case.key])}
            for case in cases
        ],
    }
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"{args.name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    text = document(report)
    path.with_suffix(".md").write_text(text)
    print(text)
    if args.pictures:
        from .served.plot import draw

        draw(report, args.results / args.name)
    return 0


def median(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median over rounds of each figure; the error, if every round failed."""
    good = [one for one in rounds if "error" not in one]
    if not good:
        return {"error": rounds[-1]["error"] if rounds else "not run"}
    return {name: statistics.median(one[name] for one in good) for name in good[0]}


def document(report: dict[str, Any]) -> str:
    machine, settings = report["environment"], report["settings"]
    about = (
        f"{settings['rounds']} rounds of {settings['seconds']} s, {machine['date']}, "
        f"commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores. "
        "Medians over rounds; `of floor` compares with the model called in the "
        "client's own process in the same run. What this does not show: "
        "[benchmarks/README.md](../README.md)."
    )
    lines = [
        "# How near does a served model come to the model itself?",
        "",
        about,
    ]
    cases = report["cases"]
    for model in dict.fromkeys(case["model"] for case in cases):
        for row in dict.fromkeys(case["row"] for case in cases):
            here = [c for c in cases if c["model"] == model and c["row"] == row]
            floor = next(
                (c.get("states_per_s") for c in here if c["peer"] == "floor"), None
            )
            bound = ROWS[row].bound
            lines += [
                "",
                f"## {model}, {row}",
                "",
                (
                    "| peer | states | clients | in flight | states/s | of bound "
                    "| of floor | p50 ms | p99 ms | CPU s per 1,000 | MB |"
                ),
                "|---|---|---|---|---|---|---|---|---|---|---|",
            ]
            for case in here:
                start = "| {peer} | {states} | {clients} | {in_flight} |".format(**case)
                if "error" in case:
                    lines.append(f"{start} failed | | | | | | |")
                    continue
                rate = case["states_per_s"]
                of_floor = f"{rate / floor:.3f}" if floor else ""
                lines.append(
                    f"{start} {rate:,.0f} | {rate / bound:.3f} | {of_floor} | "
                    f"{case['p50_ms']:.2f} | {case['p99_ms']:.2f} | "
                    f"{case['cpu_s_per_1000_states']:.4f} | {case['memory_mb']:.0f} |"
                )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument(
        "--models", nargs="+", choices=["sleep", "torch"], default=["sleep", "torch"]
    )
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--in-flight", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--results", type=Path, default=harness.RESULTS)
    parser.add_argument("--name", default="serving", help="of the results' files")
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        result = run_case(Case(**json.loads(args.case)), args.seconds)
        args.into.write_text(json.dumps(result))
        return 0
    return run(args)


def model_of(case: Case) -> Any:
    return make(case.model, ROWS[case.row], case.layers)


def row_of(case: Case) -> Row:
    return ROWS[case.row]


if __name__ == "__main__":
    sys.exit(main())
