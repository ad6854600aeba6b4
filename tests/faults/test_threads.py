"""Several threads of one driver, which use everything at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")


def test_threads_of_one_driver_get_what_each_has_asked_for() -> None:
    # In a process of its own: a crash, or a hang, is its own.
    script = Path(__file__).with_name("threads.py")
    ended = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(script), "5"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert int(ended.stdout.split()[0]) > 0
