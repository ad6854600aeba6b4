"""Run one benchmark question on several peers, one after another, and report it.

Every sample is a cost: seconds per operation, bytes, or a share of a core. A peer runs
in a process of its own for each round and group of cases, so that no peer's threads or
memory weigh on another's. Rounds take the peers in turn: a slow minute of the machine
falls on all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
MARK = "SKATE_BENCHMARK"  # in the environment of every process that a peer starts

Samples = list[float]
Work = Callable[[], Samples]


@dataclass(frozen=True)
class Goal:
    """What a case must reach, from the project's acceptance criteria."""

    text: str
    against: str | None = None  # a peer's name, or None: an absolute cost
    case: str | None = None  # the peer's case, where it is another one
    at_least: float = 0.0  # times better than ``against``
    at_most: float = 0.0  # cost, when there is no ``against``


@dataclass(frozen=True)
class Case:
    """One row of the table. ``unit`` decides how its costs are shown."""

    name: str
    unit: str  # calls/s, images/s, GB/s, us, ms, MB or %
    nbytes: int = 0  # what one operation moves, for GB/s
    goals: tuple[Goal, ...] = ()

    def show(self, cost: float) -> float:
        """``cost`` in this case's unit."""
        match self.unit:
            case "calls/s":
                return 1 / cost
            case "GB/s":
                return self.nbytes / cost / 1e9
            case "images/s":
                return 1 / cost
            case "us":
                return cost * 1e6
            case "ms":
                return cost * 1e3
            case "MB":
                return cost / 1e6
            case "%":
                return cost * 100
        raise ValueError(f"case {self.name!r} has an unknown unit {self.unit!r}")


@dataclass(frozen=True)
class Question:
    """A benchmark: its cases, and the peers that answer it."""

    name: str  # of its file here, and of its results
    text: str
    cases: tuple[Case, ...]
    peers: tuple[str, ...]  # modules of benchmarks.peers; the first one is skate's
    groups: tuple[str, ...]
    # Draws a report into a PNG file, if there is anything to draw.
    draw: Callable[[dict[str, Any], Path], None] | None = None


@dataclass
class Timer:
    """How long and how often a peer repeats its work."""

    seconds: float = 1.0
    most_samples: int = 20_000

    def calls(self, work: Callable[[], Any], per: int = 1) -> Samples:
        """Seconds that each call of ``work`` took, divided by ``per``, once warm."""
        self._repeat(work, self.seconds / 5, at_least=2)
        return [took / per for took in self._repeat(work, self.seconds, at_least=3)]

    def _repeat(
        self, work: Callable[[], Any], seconds: float, at_least: int
    ) -> Samples:
        took: Samples = []
        end = time.perf_counter() + seconds
        while len(took) < at_least or time.perf_counter() < end:
            start = time.perf_counter()
            work()
            took.append(time.perf_counter() - start)
            if len(took) == self.most_samples:
                break
        return took


@dataclass
class Answer:
    """What one peer gave for one case, over all rounds."""

    rounds: list[Samples] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median over rounds of each round's median: one bad round is no matter."""
        return statistics.median(self.medians)

    @property
    def medians(self) -> list[float]:
        return [statistics.median(samples) for samples in self.rounds]

    def spread(self, case: Case) -> tuple[float, float]:
        """p5 and p95 over all calls of all rounds, in the case's unit."""
        shown = sorted(case.show(cost) for samples in self.rounds for cost in samples)
        last = len(shown) - 1
        return shown[round(0.05 * last)], shown[round(0.95 * last)]

    def report(self, case: Case) -> dict[str, Any]:
        """Numbers in the case's unit."""
        p5, p95 = self.spread(case)
        return {
            "unit": case.unit,
            "median": case.show(self.median),
            "p5": p5,
            "p95": p95,
            "run_medians": [case.show(median) for median in self.medians],
            "samples": sum(map(len, self.rounds)),
        }


Answers = dict[str, dict[str, Answer]]  # case -> peer -> answer


# One peer, in its own process ------------------------------------------------------


def answer_in_this_process(peer: str, group: str, seconds: float, into: Path) -> None:
    """Measure one group of cases of one peer; leave the samples as JSON in ``into``."""
    module = import_module(f"benchmarks.peers.{peer}")
    samples: dict[str, Samples] = {}
    failures: dict[str, str] = {}
    for name, work in module.cases(group, Timer(seconds)):
        try:
            samples[name] = work()
        except Exception as error:  # a lost case is a result too; the others go on
            failures[name] = f"{type(error).__name__}: {error}"
    into.write_text(json.dumps({"samples": samples, "failures": failures}))


def _ask(question: Question, peer: str, group: str, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "samples.json"
        command = [sys.executable, "-m", f"benchmarks.{question.name}"]
        command += ["--peer", peer, "--group", group, "--into", str(into)]
        command += ["--seconds", str(seconds)]
        env = {**os.environ, MARK: f"{os.getpid()}-{peer}-{group}"}
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            words = last_words(done.stderr)
            return {"samples": {}, "failures": {f"group {group}": words}}
        answer: dict[str, Any] = json.loads(into.read_text())
        return answer


def last_words(text: str) -> str:
    """The end of what a process wrote, without the folders of this machine."""
    words = "".join(text.splitlines(keepends=True)[-15:])
    for folder in (ROOT, sys.prefix, sys.base_prefix):
        words = words.replace(f"{folder}/", "")
    return words


# The whole question ----------------------------------------------------------------


def main(question: Question, rounds: int = 5) -> int:
    """Ask ``question`` as the command line says; or, as its child, one group."""
    parser = argparse.ArgumentParser(description=question.text)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seconds", type=float, default=1.0, help="per case and round")
    parser.add_argument(
        "--peers", nargs="+", choices=question.peers, default=question.peers
    )
    parser.add_argument(
        "--groups", nargs="+", choices=question.groups, default=question.groups
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="a folder")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--group", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peer:
        answer_in_this_process(asked.peer, asked.group, asked.seconds, asked.into)
        return 0
    return run(
        replace(question, groups=tuple(asked.groups)),
        rounds=asked.rounds,
        seconds=asked.seconds,
        peers=asked.peers,
        results=asked.results,
    )


def run(
    question: Question,
    *,
    rounds: int,
    seconds: float,
    peers: Sequence[str],
    results: Path = RESULTS,
) -> int:
    """Ask every peer, print the table, write all down; 1 if a case broke."""
    refuse_debug_build()
    answers: Answers = {case.name: {} for case in question.cases}
    failures: dict[str, dict[str, str]] = {}
    for number in range(1, rounds + 1):
        for peer in peers:
            for group in question.groups:
                print(f"round {number}/{rounds}: {peer} {group}", file=sys.stderr)
                given = _ask(question, peer, group, seconds)
                for name, samples in given["samples"].items():
                    answers[name].setdefault(peer, Answer()).rounds.append(samples)
                if given["failures"]:
                    failures.setdefault(peer, {}).update(given["failures"])
    verdicts = list(_judge(question, answers))
    table = _table(question, answers, peers, verdicts)
    report = {
        "question": question.text,
        "settings": {"rounds": rounds, "seconds": seconds, "peers": list(peers)},
        "environment": environment(),
        "cases": {
            case.name: {
                peer: answer.report(case) for peer, answer in answers[case.name].items()
            }
            for case in question.cases
        },
        "goals": verdicts,
        "failures": failures,
    }
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{question.name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(_document(question, report, table))
    if question.draw is not None:
        question.draw(report, path.with_suffix(".png"))
    print(table)
    for peer, by_case in failures.items():
        for name, text in by_case.items():
            print(f"{peer}: {name}: {text}", file=sys.stderr)
    return int(bool(failures))


def _judge(question: Question, answers: Answers) -> Iterator[dict[str, Any]]:
    ours = question.peers[0]
    for case in question.cases:
        for goal in case.goals:
            verdict: dict[str, Any] = {"case": case.name, "goal": goal.text}
            own = answers[case.name].get(ours)
            other_case = goal.case or case.name
            other = answers[other_case].get(goal.against) if goal.against else None
            if own is None or (goal.against and other is None):
                verdict |= {"value": None, "passed": None}
            elif other is not None:
                times = other.median / own.median
                verdict |= {"value": times, "passed": times >= goal.at_least}
            else:
                verdict |= {
                    "value": case.show(own.median),
                    "passed": own.median <= goal.at_most,
                }
            yield verdict


def _table(
    question: Question,
    answers: Answers,
    peers: Sequence[str],
    verdicts: Sequence[dict[str, Any]],
) -> str:
    """Markdown: median (p5 to p95) of every peer, its ratio to skate, the goals."""
    ours = question.peers[0]
    rows = [["case", "unit", *(peer.removesuffix("_peer") for peer in peers), "goal"]]
    for case in question.cases:
        own = answers[case.name].get(ours)
        row = [case.name, case.unit]
        for peer in peers:
            answer = answers[case.name].get(peer)
            if answer is None:
                row.append("-")
                continue
            text = _number(case.show(answer.median))
            text += " ({} to {})".format(*map(_number, answer.spread(case)))
            if own is not None and peer != ours:
                text += f", {_number(answer.median / own.median)}x"
            row.append(text)
        goals = [verdict for verdict in verdicts if verdict["case"] == case.name]
        row.append("; ".join(map(_goal_text, goals)))
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows
    )


def _goal_text(verdict: dict[str, Any]) -> str:
    if verdict["passed"] is None:
        return f"{verdict['goal']}: not measured"
    word = "pass" if verdict["passed"] else "FAIL"
    return f"{verdict['goal']}: {word} ({_number(verdict['value'])})"


def _number(value: float) -> str:
    """Three digits that matter, without an exponent: 12,300, 45.6, 0.0123."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        digits = 3 - len(str(int(abs(value))))
        return f"{round(value, min(digits, 0)):,.0f}"
    return f"{value:.3g}"


def _document(question: Question, report: dict[str, Any], table: str) -> str:
    settings, machine = report["settings"], report["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    picture = "" if question.draw is None else f"\n![]({question.name}.png)\n"
    return (
        f"# {question.text}\n\n"
        f"{settings['rounds']} runs, {machine['date']}, commit {machine['commit']}, "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}, {versions}. "
        "Each cell: median (p5 to p95 over calls), and how many times skate's cost it "
        "is. Medians of each run are in the JSON file beside this one. What this does "
        "not show: [benchmarks/README.md](../README.md).\n\n"
        f"{table}\n{picture}"
    )


# The machine and the build ---------------------------------------------------------


def refuse_debug_build() -> None:
    """Leave if skate's core was not built for speed: its figures would mislead."""
    try:
        core = import_module("skate._core")  # no public name tells its build type
    except ImportError:
        return
    if core.build_type != "Release":
        sys.exit(
            f"skate._core is a {core.build_type} build; benchmarks of it mean nothing. "
            "Rebuild it: rm -rf build/dev && make core"
        )


def environment() -> dict[str, Any]:
    """Where and on what this ran."""
    packages = ("skate", "numpy", "cloudpickle", "ray", "joblib")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _git("rev-parse", "--short", "HEAD")
        + (
            "+changes" if _git("status", "--porcelain", "src", "CMakeLists.txt") else ""
        ),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"Linux {platform.release()}",
        "core_flags": _core_flags(),
        "versions": versions,
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _core_flags() -> str | None:
    """How `make core` compiled the core; None if it did not."""
    commands = ROOT / "build" / "dev" / "compile_commands.json"
    if not commands.exists():
        return None
    words = json.loads(commands.read_text())[0]["command"].split()
    return " ".join(word for word in words if re.match("-[DOWfgms]", word))


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


# Processes of the peer under test --------------------------------------------------


def own_processes() -> list[int]:
    """This process and all that it started, also what detached itself from it."""
    # Neither sign is enough: a daemon has another parent, and a process that sets its
    # title (a Ray worker does) may overwrite its environment.
    mark = f"{MARK}={os.environ[MARK]}".encode()
    parents: dict[int, int] = {}
    found = {os.getpid()}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
            except OSError:
                continue  # it ended, or belongs to another user
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    return sorted(found)


def memory_bytes() -> float:
    """Proportional set size of all own processes: shared pages are counted once."""
    total = 0
    for pid in own_processes():
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has ended
        total += sum(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")
        )
    return float(total)


def idle_share_of_core(seconds: float) -> float:
    """CPU time that all own threads use in ``seconds`` of doing nothing."""
    # To the nanosecond: utime and stime count whole ticks. Our own comes last before,
    # and first after, so that reading the others is not counted.
    own = Path("/proc/self/task", str(threading.get_native_id()), "schedstat")
    clocks = [
        thread / "schedstat"
        for pid in own_processes()
        for thread in Path(f"/proc/{pid}/task").iterdir()
        if thread.name != own.parent.name
    ]
    clocks.append(own)
    before, start = _cpu_seconds(clocks), time.perf_counter()
    time.sleep(seconds)
    took = time.perf_counter() - start
    return (_cpu_seconds(reversed(clocks)) - before) / took


def _cpu_seconds(clocks: Iterable[Path]) -> float:
    return sum(int(clock.read_text().split()[0]) for clock in clocks) / 1e9
