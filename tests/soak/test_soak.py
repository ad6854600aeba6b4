"""The soak, for as long as a test may take; ``make soak`` runs it for minutes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
