import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer")


def bench(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "skate", "bench", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "src" / "skate").mkdir(parents=True)
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name in ("__init__", "harness"):
        (folder / f"{name}.py").touch()
    (folder / "speed.py").write_text("import sys\nprint(sys.argv[1:])\nsys.exit(3)\n")
    return tmp_path


def test_a_question_runs_with_its_own_options(checkout: Path) -> None:
    done = bench("speed", "--rounds", "2", "--help", cwd=checkout / "benchmarks")
    assert done.stdout == "['--rounds', '2', '--help']\n"
    assert done.returncode == 3


def test_questions_are_listed_and_a_wrong_name_is_refused(checkout: Path) -> None:
    assert bench(cwd=checkout).stdout.endswith("benchmarks: speed\n")
    failed = bench("sped", cwd=checkout)
    assert failed.returncode == 1
    assert "has no benchmark 'sped'; it has speed." in failed.stderr
