import subprocess
import sys
from pathlib import Path

import pytest

for module in ("typer", "gymnasium", "torch", "matplotlib", "PIL"):
    pytest.importorskip(module)


def skate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "skate", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_train_then_evaluate_give_the_same_mean(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    small = ["--total-steps", "256", "--num-envs-per-worker", "4"]
    trained = skate(
        *("train", "ppo", "Pendulum-v1", "--out", run, "--engine", "inline"),
        *("--rollout-length", "32", "--episodes", "2", *small),
    )
    assert trained.returncode == 0, trained.stderr
    assert "steps/s" in trained.stdout
    assert "serving    busy" in trained.stdout
    evaluated = skate("evaluate", run, "--episodes", "2", "--seed", "0")
    assert evaluated.returncode == 0, evaluated.stderr
    mean = evaluated.stdout.split("mean return ")[1].split(" ")[0]
    assert f"mean return {float(mean):.1f}" in trained.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "pp0", "Pendulum-v1"], "Did you mean ppo or es?"),
        (["train", "ppo", "Pendulun-v1"], "Pendulum-v1"),
        (["evaluate", "nowhere"], "'nowhere' is not the directory of a training run"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], message: str) -> None:
    if arguments[0] == "train":
        arguments = [*arguments, "--engine", "inline"]
    failed = skate(*arguments)
    assert failed.returncode == 1
    assert failed.stderr.startswith("skate: ")
    assert failed.stderr.count("\n") == 1
    assert message in failed.stderr


def test_without_typer_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from skate.cli import main; main()"
    failed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert "needs typer" in failed.stderr
    assert "pip install 'skate[rl]'" in failed.stderr
