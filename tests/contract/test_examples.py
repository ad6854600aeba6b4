import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("simulate.py", "pi is about 3.14"),
        ("serve.py", "answers [(6.0, 2)]"),
        ("population.py", "updates"),
        ("serve_torch.py", "version 1: [[0. 0.]]"),
        ("data_parallel.py", "y = 3.00 x -1.00"),
        ("actor_learner.py", "arrives in 9"),
    ],
)
def test_example_does_what_it_says(name: str, output: str, engine_name: str) -> None:
    if name in ("data_parallel.py", "serve_torch.py"):
        pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        env={**os.environ, "SKATE_ENGINE": engine_name},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert output in done.stdout


def run_one_program(engine_name: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "one_program.py")],
        env={**os.environ, "SKATE_ENGINE": engine_name},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_program_prints_the_same_on_every_engine(engine_name: str) -> None:
    if engine_name == "ray":
        pytest.importorskip("torch")  # groups of ranks are torch.distributed's
    assert run_one_program(engine_name) == run_one_program("inline")
