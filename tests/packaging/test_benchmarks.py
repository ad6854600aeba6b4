"""The benchmark harness: what it counts, and how it judges."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.engine import QUESTION
from benchmarks.harness import Answer, Case, Goal, Question

ROOT = Path(__file__).parents[2]
RATE = Case(
    "calls",
    "calls/s",
    goals=(
        Goal("10x", against="peer", at_least=10),
        Goal("fast", at_most=1e-6),
    ),
)
ASK = Question("q", "How fast?", (RATE,), peers=("own", "peer"), groups=())


def judge(own: float, peer: float | None) -> list[bool | None]:
    answers = {"calls": {"own": Answer([[own]])}}
    if peer is not None:
        answers["calls"]["peer"] = Answer([[peer]])
    return [verdict["passed"] for verdict in harness._judge(ASK, answers)]


def test_a_goal_compares_costs_with_the_peer_or_with_a_limit() -> None:
    assert judge(own=1e-6, peer=1e-5) == [True, True]
    assert judge(own=2e-6, peer=1e-5) == [False, False]


def test_a_goal_whose_peer_did_not_answer_is_neither_passed_nor_failed() -> None:
    assert judge(own=1e-6, peer=None) == [None, True]


def test_one_bad_round_does_not_move_the_median() -> None:
    answer = Answer([[1.0, 1.0, 9.0], [2.0], [50.0, 60.0]])
    assert answer.median == 2.0


def test_a_spread_is_from_low_to_high_in_the_shown_unit() -> None:
    answer = Answer([[0.001 * n for n in range(1, 101)]])
    low, high = answer.spread(RATE)
    assert low < answer.report(RATE)["median"] < high


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.01234, "0.0123"),
        (45.61, "45.6"),
        (123.4, "123"),
        (12345, "12,300"),
    ],
)
def test_numbers_keep_three_digits(value: float, text: str) -> None:
    assert harness._number(value) == text


def test_goals_name_peers_and_cases_that_exist() -> None:
    names = {case.name for case in QUESTION.cases}
    for case in QUESTION.cases:
        for goal in case.goals:
            assert goal.against is None or goal.against in QUESTION.peers
            assert goal.case is None or goal.case in names


def test_a_daemon_that_left_its_parent_is_still_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(harness.MARK, "daemon-test")
    grandchild = "import sys; print('ready', flush=True); sys.stdin.read()"
    child = (
        "import subprocess, sys; p = subprocess.Popen("
        f"[sys.executable, '-c', {grandchild!r}], start_new_session=True); print(p.pid)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", child],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        assert started.stdout is not None
        lines = {started.stdout.readline().strip() for _ in range(2)}
        started.wait()
        (pid,) = lines - {"ready"}
        assert int(pid) in harness.own_processes()


def test_a_run_writes_the_report_that_it_prints(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.engine", "--rounds", "1"]
    command += ["--seconds", "0.01", "--peers", "process_pool", "--groups", "calls"]
    done = subprocess.run(
        [*command, "--results", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    report = json.loads((tmp_path / "engine.json").read_text())
    measured = report["cases"]["single client tasks sync"]["process_pool"]
    assert measured["unit"] == "calls/s"
    assert measured["p5"] <= measured["median"] <= measured["p95"]
    assert "single client tasks sync" in done.stdout
    assert done.stdout.strip() in (tmp_path / "engine.md").read_text()
