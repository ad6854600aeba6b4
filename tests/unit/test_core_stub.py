"""The checked-in stub of the C++ core is what the core says of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import skate

pytest.importorskip("skate._core", reason="skate's C++ core is not built")
pytest.importorskip("nanobind.stubgen", reason="nanobind, which makes stubs, is absent")

ROOT = Path(__file__).parents[2]


def test_the_stub_is_up_to_date(tmp_path: Path) -> None:
    made = tmp_path / "_core.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "skate._core"]
    patterns = ROOT / "src/bindings/stub_patterns.txt"
    subprocess.run([*command, "-p", patterns, "-o", made], check=True)
    checked_in = Path(skate.__file__).with_name("_core.pyi")
    hint = f"make it anew: {' '.join(command[1:])} -p {patterns.name} -o {checked_in}"
    assert made.read_text() == checked_in.read_text(), hint
