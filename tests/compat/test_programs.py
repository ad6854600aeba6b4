"""Unchanged Ray programs print the same on skate as under the real Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from record import ARGUMENTS, HERE, PROGRAMS

# What a program does that an engine cannot: a crash of a task ends an inline program.
NOT_INLINE = {"errors", "async_actors"}


@pytest.mark.parametrize("engine", ["embedded", "inline"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_prints_what_it_prints_under_ray(
    program: Path, engine: str, tmp_path: Path
) -> None:
    if engine == "inline" and program.stem in NOT_INLINE:
        pytest.skip("needs processes of its own")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "skate.compat.ray", str(program)),
            *ARGUMENTS.get(program.stem, []),
        ],
        env={**os.environ, "SKATE_ENGINE": engine},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    expected = (HERE / "recorded" / f"{program.stem}.txt").read_text()
    assert f"{done.stdout}exit status {done.returncode}\n" == expected, done.stderr
