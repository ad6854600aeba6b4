"""What the README shows runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("engine", ["embedded", "inline"])
def test_the_first_program_of_the_readme_runs(engine: str, tmp_path: Path) -> None:
    match = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert match is not None
    program = tmp_path / "program.py"
    program.write_text(match.group(1))
    done = subprocess.run(
        [sys.executable, program],
        env={**os.environ, "SKATE_ENGINE": engine},
        check=False,
        capture_output=True,
        text=True,
    )
    assert re.fullmatch(r"the highest point of 100 runs: \d+\.\d\n", done.stdout), (
        done.stderr
    )
