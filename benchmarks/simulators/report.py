"""What the simulation question found: a table, the goals, JSON and pictures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import workload

Case = dict[str, Any]  # as ``simulation._answers`` makes it

NAMES = {
    "skate": "skate",
    "skate_cost": "skate, cost given",
    "skate_learn": "skate, cost learned",
    "loop": "a plain loop",
    "mpi": "MPI, barriers",
    "ray": "Ray",
    "ray_by_hand": "Ray, 20 a task by hand",
    "pool": "multiprocessing.Pool",
    "executor": "ProcessPoolExecutor",
    "loky": "loky",
    "dask": "dask",
}
_PLAN_OF = {"skate_cost": "longest_first", "skate_learn": "longest_first"}


def write(answers: dict[str, Case], machine: dict[str, Any], folder: Path) -> None:
    """``simulation.json``, ``.md`` and two pictures into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    goals = list(_goals(answers))
    data = {"environment": machine, "cases": answers, "goals": goals}
    (folder / "simulation.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / "simulation.md").write_text(_document(answers, machine, goals))
    _draw_throughput(answers, folder / "simulation-throughput.png")
    _draw_schedules(folder / "simulation-schedules.png")


# Figures of one peer in one case ------------------------------------------------------


def wall_s(piece: dict[str, Any]) -> list[float]:
    """Of every draw."""
    return [draw["wall_s"] for draw in piece["draws"]]


def steps_a_second(piece: dict[str, Any]) -> float:
    """The median over draws."""
    return statistics.median(d["steps"] / d["wall_s"] for d in piece["draws"])


def useful(case: Case, piece: dict[str, Any]) -> float:
    """The share of the time of all workers, or cores, spent in the simulator."""
    shares = []
    for draw in piece["draws"]:
        seconds = draw["cpu_s"]
        if case["step_s"]:  # a simulator that waits is busy while it waits
            seconds = draw["steps"] * case["step_s"]
        shares.append(seconds / draw["wall_s"] / case["cores"])
    return statistics.median(shares)


def of_schedule(case: Case, piece: dict[str, Any], plan: str) -> float | None:
    """Exact time of ``plan`` for the same lengths, divided by the measured time."""
    if not case["step_s"]:
        return None
    return statistics.median(
        exact[plan] * case["step_s"] / measured
        for exact, measured in zip(case["exact"], wall_s(piece), strict=False)
    )


def _piece(answers: dict[str, Case], case: str, peer: str) -> dict[str, Any] | None:
    piece: dict[str, Any] | None = answers[case]["peers"].get(peer)
    return None if piece is None or "failed" in piece else piece


# Goals --------------------------------------------------------------------------------


def _goals(answers: dict[str, Case]) -> Any:
    def goal(text: str, least: float, value: float | None) -> dict[str, Any]:
        passed = None if value is None else value >= least
        return {"goal": text, "at_least": least, "value": value, "passed": passed}

    for n in (16, 64, 256):
        name = f"waiting-{n}"
        case = answers[name]
        for peer, plan, least in (
            ("skate", "greedy", 0.98),
            ("skate_cost", "longest_first", 0.97),
            ("skate_learn", "longest_first", 0.95),
        ):
            piece = _piece(answers, name, peer)
            share = piece and of_schedule(case, piece, plan)
            yield goal(f"{name}: {NAMES[peer]}, of the exact {plan}", least, share)
        barrier = _piece(answers, name, "mpi")
        measured = barrier is not None
        for peer, plan in (("skate", "greedy"), ("skate_cost", "longest_first")):
            piece = _piece(answers, name, peer)
            ratio = None
            if piece:
                ratio = statistics.median(
                    _barrier_s(case, barrier, i) / own / (e["barriers"] / e[plan])
                    for i, (e, own) in enumerate(
                        zip(case["exact"], wall_s(piece), strict=True)
                    )
                )
            against = "measured" if measured else "exact"
            text = f"{name}: {NAMES[peer]} beside {against} barriers, of the exact"
            yield goal(f"{text} ratio", 0.97, ratio)
    piece = _piece(answers, "waiting-256", "skate")
    yield goal("256 workers up: 5 s / start", 1.0, piece and 5 / piece["start_s"])
    value = piece and 1e9 / piece["memory_bytes"]
    yield goal("256 workers: 1 GB / memory", 1.0, value)

    case = answers["coarse-2"]
    piece = _piece(answers, "coarse-2", "skate")
    value = piece and statistics.median(
        draw["cpu_s"] / draw["wall_s"] / (exact["steps"] / exact["greedy"])
        for draw, exact in zip(piece["draws"], case["exact"], strict=False)
    )
    yield goal("coarse-2: useful, of the exact greedy schedule's", 0.97, value)
    piece = _piece(answers, "fine-2", "skate")
    value = piece and useful(answers["fine-2"], piece)
    yield goal("fine-2: useful share", 0.92, value)
    for text, name, other, least in (
        ("tiny-2: rate beside Ray", "tiny-2", "ray", 8.0),
        ("tiny-2: rate beside multiprocessing", "tiny-2", "pool", 1.8),
        ("coarse-1: rate beside a plain loop", "coarse-1", "loop", 0.97),
        ("es-2: beside Ray", "es-2", "ray", 1.5),
        ("es-2: beside Ray, 20 a task by hand", "es-2", "ray_by_hand", 1.0),
    ):
        own, theirs = _piece(answers, name, "skate"), _piece(answers, name, other)
        value = own and theirs and steps_a_second(own) / steps_a_second(theirs)
        yield goal(text, least, value)


def _barrier_s(case: Case, measured: dict[str, Any] | None, draw: int) -> float:
    if measured is None:  # the exact one stands in
        return float(case["exact"][draw]["barriers"] * case["step_s"])
    return float(measured["draws"][draw]["wall_s"])


# Text ---------------------------------------------------------------------------------


def _document(
    answers: dict[str, Case], machine: dict[str, Any], goals: Sequence[dict[str, Any]]
) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    parts = [
        "# Simulations of unequal length: how long do they take, here and elsewhere?\n",
        (
            f"{machine['date']}, commit {machine['commit']}, {machine['cpu']}, "
            f"{machine['cores']} cores, {machine['kernel']}, {versions}. Medians over "
            "seeded draws. `useful`: share of the time of all workers (real Pendulum: "
            "CPU time of the cores) in the simulator. What this does not show: "
            "[benchmarks/README.md](../README.md).\n"
        ),
    ]
    for name, case in answers.items():
        if case["exact"]:
            parts += [f"## {name}\n", _exact_line(case), _table(case), ""]
    parts += ["## Goals\n", _goal_table(goals), ""]
    parts += [
        "![throughput](simulation-throughput.png)\n",
        "![schedules](simulation-schedules.png)",
    ]
    return "\n".join(parts) + "\n"


def _exact_line(case: Case) -> str:
    shares = case["exact_useful"]
    return (
        f"{case['n']} workers, {len(case['exact'])} draws. Useful share that exact "
        f"schedules of the same lengths allow: barriers {shares['barriers']:.3f}, "
        f"greedy {shares['greedy']:.3f}, longest first "
        f"{shares['longest_first']:.3f}, lower bound {shares['lower_bound']:.3f}.\n"
    )


def _table(case: Case) -> str:
    waits = bool(case["step_s"])
    header = ["system", "steps/s", "wall s (range)", "useful"]
    header += ["of exact greedy", "of exact longest first"] if waits else ["runs/s"]
    rows = [[*header, "start s", "memory MB"]]
    for peer, piece in case["peers"].items():
        row = [NAMES[peer]]
        if "failed" in piece:
            rows.append([*row, f"not measured: {piece['failed']}"[:90]])
            continue
        walls = wall_s(piece)
        row += [
            f"{steps_a_second(piece):,.0f}",
            f"{statistics.median(walls):.3g} ({min(walls):.3g} to {max(walls):.3g})",
            f"{useful(case, piece):.3f}",
        ]
        if waits:
            for plan in ("greedy", "longest_first"):
                share = of_schedule(case, piece, plan)
                row.append("-" if share is None else f"{share:.3f}")
        else:
            runs = [d.get("runs", 0) / d["wall_s"] for d in piece["draws"]]
            row.append(f"{statistics.median(runs):,.0f}" if any(runs) else "-")
        start, memory = piece.get("start_s"), piece.get("memory_bytes")
        row.append("-" if start is None else f"{start:.2f}")
        row.append("-" if memory is None else f"{memory / 1e6:,.0f}")
        rows.append(row)
    return _markdown(rows)


def _goal_table(goals: Sequence[dict[str, Any]]) -> str:
    words = {True: "pass", False: "FAIL", None: "not measured"}
    rows = [["goal", "at least", "value", ""]]
    for goal in goals:
        value = "-" if goal["value"] is None else f"{goal['value']:.3g}"
        least = f"{goal['at_least']:g}"
        rows.append([goal["goal"], least, value, words[goal["passed"]]])
    return _markdown(rows)


def _markdown(rows: list[list[str]]) -> str:
    columns = len(rows[0])
    rows = [row + [""] * (columns - len(row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows
    )


# Pictures -----------------------------------------------------------------------------


def _draw_throughput(answers: dict[str, Case], path: Path) -> None:
    from matplotlib.figure import Figure

    sizes = [n for n in (16, 64, 256) if answers[f"waiting-{n}"]["exact"]]
    if not sizes:
        return
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for peer in ("skate_cost", "skate_learn", "skate", "ray", "pool", "loky", "mpi"):
        points = [
            (n, steps_a_second(piece))
            for n in sizes
            if (piece := _piece(answers, f"waiting-{n}", peer)) is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", label=NAMES[peer])
    ideal = [n / workload.WAIT_STEP_S for n in sizes]
    axes.plot(sizes, ideal, "k:", label="every worker always useful")
    axes.set(xscale="log", yscale="log", xlabel="workers", ylabel="timesteps a second")
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.set_title("3n simulations at 50 Hz of lognormal length")
    axes.legend()
    figure.savefig(path, dpi=120)


def _draw_schedules(path: Path, n: int = 16) -> None:
    from matplotlib.figure import Figure

    lengths = workload.lognormal_steps(0, 3 * n, workload.WAIT_STEPS)
    seconds = [steps * workload.WAIT_STEP_S for steps in lengths]
    longest = sorted(seconds, reverse=True)
    plans: list[tuple[str, Callable[..., Any], list[float]]] = [
        ("barriers", workload.barrier_spans, seconds),
        ("gathered as they finish", workload.greedy_spans, seconds),
        ("longest first", workload.greedy_spans, longest),
    ]
    figure = Figure(figsize=(8, 8), layout="constrained")
    for axes, (name, plan, runs) in zip(
        figure.subplots(3, 1, sharex=True), plans, strict=True
    ):
        spans = plan(runs, n)
        for worker, start, end in spans:
            axes.broken_barh(
                [(start, end - start)], (worker - 0.4, 0.8), edgecolor="white"
            )
        total = max(end for _, _, end in spans)
        axes.axvline(total, color="tab:red")
        share = sum(seconds) / n / total
        axes.set_title(f"{name}: {total:.2f} s, {share:.0%} useful")
        axes.set_ylabel("worker")
    axes.set_xlabel("seconds")
    figure.savefig(path, dpi=120)
