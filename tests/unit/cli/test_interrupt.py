import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from polling import wait_until

from skate import rl, train

for module in ("typer", "gymnasium", "torch", "matplotlib", "PIL"):
    pytest.importorskip(module)

SMALL = ["--num-envs-per-worker", "4", "--rollout-length", "32", "--episodes", "2"]


def has_begun(run: Path) -> bool:
    return (run / "config.json").exists()


def has_learnt(run: Path) -> bool:
    metrics = run / "metrics.jsonl"
    return metrics.exists() and metrics.read_text().count("\n") >= 3


def members(group: int) -> list[str]:
    """Processes that are still in ``group``."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


@pytest.mark.parametrize("engine", ["embedded", "inline"])
@pytest.mark.parametrize("moment", [has_begun, has_learnt])
def test_ctrl_c_ends_training_and_saves_what_was_learnt(
    tmp_path: Path, engine: str, moment: Callable[[Path], bool]
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "skate", "train", "ppo", "Pendulum-v1"]
    options = ["--out", str(run), "--engine", engine, *SMALL]
    with subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as training:
        try:
            assert wait_until(lambda: moment(run), timeout=60)
            os.killpg(training.pid, signal.SIGINT)  # as a terminal does: to all of it
            output, _ = training.communicate(timeout=60)
            assert training.returncode == 130, output
            assert "stopped; to go on" in output
            assert "Traceback" not in output
            assert wait_until(lambda: not members(training.pid)), members(training.pid)
        finally:
            if training.poll() is None:
                os.killpg(training.pid, signal.SIGKILL)
    if moment is has_learnt:
        assert train.load_checkpoint(run)["totals"]["updates"] >= 3
        assert rl.load_policy(run)([1.0, 0.0, 0.0]).shape == (1,)


def test_ctrl_c_within_exec_ends_a_command_like_any_other(tmp_path: Path) -> None:
    # exec makes dataclasses: an interrupt may come there, in the middle of an import.
    (tmp_path / "program.py").write_text(
        "from skate.cli.app import polite\n"
        "polite(lambda: exec('raise KeyboardInterrupt'))()\n"
    )
    command = [sys.executable, "-m", "program"]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 130
