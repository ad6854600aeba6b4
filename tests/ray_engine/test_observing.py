"""What a session on Ray tells of itself, and what it refuses by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import skate
from skate.exceptions import EngineError

pytest.importorskip("ray", reason="Ray is not installed")

PROGRAM = """
import json, pathlib, sys, time
import skate

@skate.remote
def recognizable(): ...

with skate.init("ray", num_cpus=1):
    skate.get([recognizable.remote() for _ in range(3)])
    path = pathlib.Path(sys.argv[1])
    end = time.monotonic() + 60
    while time.monotonic() < end:
        skate.timeline(path)
        if "recognizable" in path.read_text():
            break
"""


@pytest.mark.ray
def test_timeline_writes_what_ray_has_recorded(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)],
        env={**environment, "RAY_PROFILING": "1"},
        check=True,
        timeout=110,
    )
    events = json.loads(path.read_text())["traceEvents"]
    names = {event["name"] for event in events}
    assert any("recognizable" in name for name in names), names


@pytest.mark.usefixtures("shared_ray")
def test_what_ray_alone_knows_is_refused_with_its_command(tmp_path: Path) -> None:
    with skate.init("ray"):
        with pytest.raises(EngineError, match="ray stack"):
            skate.debug.stacks()
        with pytest.raises(EngineError, match="RAY_PROFILING=1"):
            skate.timeline(tmp_path / "trace.json")
