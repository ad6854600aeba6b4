from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_a_type_checker_knows_what_get_returns(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="the type checker is not installed")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-error-summary"),
            *("--cache-dir", str(tmp_path), "--config-file", ""),
            *("--follow-imports", "silent", str(HERE / "typing_cases.py")),
        ],
        capture_output=True,
        text=True,
        cwd=HERE.parents[1] / "src",
        timeout=110,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("", 0), done.stderr
