"""The soak, for as long as a test may take; ``make soak`` runs it for minutes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from polling import wait_until

pytest.importorskip("skate._core", reason="the soak kills processes of the core's")


@pytest.mark.soak
@pytest.mark.timeout(400)
@pytest.mark.parametrize("options", [[], ["--stops"]], ids=str)
def test_random_graphs_survive_random_kills_and_stops(options: list[str]) -> None:
    # In a process of its own: a graph that hangs ends it, and shows everybody's stacks.
    script = Path(__file__).with_name("soak.py")
    ended = subprocess.run(
        [sys.executable, str(script), "--seconds=20", "--seed=1", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout
    assert re.search(r"[1-9]\d* graphs in [1-9]\d* sessions", ended.stdout)


STOPS_ONE = """
import subprocess, sys, time
import soak
soak.stopped.end_well()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
soak.stopped.stop(child.pid)
print(child.pid, flush=True)
if sys.argv[1] == "sleep":
    time.sleep(60)
"""


def state(pid: int) -> str:
    """As in proc(5); "Z" as well for one that is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return "Z"
    return text.rpartition(")")[2].split()[0]


@pytest.mark.parametrize("number", [0, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_soak_that_is_ended_leaves_no_process_stopped(number: int) -> None:
    command = [sys.executable, "-c", STOPS_ONE, "sleep" if number else "end"]
    with subprocess.Popen(
        command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
    ) as soak:
        assert soak.stdout is not None
        child = int(soak.stdout.readline())
        try:
            if number:
                assert wait_until(lambda: state(child) == "T")
                soak.send_signal(number)
            assert soak.wait(20) == (128 + number if number else 0)
            assert wait_until(lambda: state(child) != "T")
        finally:
            subprocess.run(["kill", "-9", str(child)], check=False)
