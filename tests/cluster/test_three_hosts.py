"""skate on a Ray cluster of three hosts, one of which ends in mid-run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts import Cluster, why_not
from polling import wait_until

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

JOB = str(Path(__file__).parent / "program/job.py")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    cluster = Cluster(num_hosts=3, cpus=2)
    yield cluster
    cluster.remove()


def next_line(program: subprocess.Popen[str]) -> dict[str, Any]:
    assert program.stdout is not None
    for line in program.stdout:
        if line.startswith("{"):  # Ray prints of its retries between
            said: dict[str, Any] = json.loads(line)
            return said
    pytest.fail(f"the program ended: {program.communicate()[1]}")


def end_of(program: subprocess.Popen[str]) -> None:
    _, errors = program.communicate(timeout=60)  # reads on: a full pipe would hold it
    assert program.returncode == 0, errors


def test_a_job_runs_on_all_hosts_and_survives_the_end_of_one(cluster: Cluster) -> None:
    addresses = [host.address for host in cluster.hosts]
    program = cluster.start_program(JOB, "main")
    assert next_line(program) == {"nodes": addresses}
    squares = [x * x for x in range(12)]
    assert next_line(program) == {"squares": squares, "hosts": addresses}
    for size, writeable, file in next_line(program)["sizes"]:
        assert (size, writeable) == (40_000_000, False)
        assert "py_modules" in file  # not what happens to be installed there
    actors = next_line(program)["actors"]
    assert set(actors) <= set(addresses)
    assert "ready" in next_line(program)
    cluster.hosts[2].pull_the_plug()
    assert program.stdin is not None
    print(file=program.stdin, flush=True)
    survivors = next_line(program)["survivors"]
    assert set(survivors) <= set(addresses[:2])
    assert next_line(program) == {"squares": squares}
    end_of(program)


def test_training_goes_on_from_its_checkpoint_when_a_host_ends(
    cluster: Cluster, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    program = cluster.start_program(JOB, "training", str(tmp_path))
    first = next_line(program)
    victim = int(max(first["hosts"]))
    assert victim > 1, "all ranks are on the head"
    assert next_line(program)["step"] == 20
    cluster.hosts[victim - 1].pull_the_plug()
    last = next_line(program)
    assert last["trained"] == [3.0, -1.0]
    assert last["step"] == 120
    assert last["begun"] >= 20
    assert victim not in last["hosts"]
    end_of(program)


PPO = (
    *("-m", "skate", "train", "ppo", "Pendulum-v1", "--engine", "ray", "--quiet"),
    *("--num-workers", "4", "--num-envs-per-worker", "16", "--target-return", "-250"),
)


def learned(program: subprocess.Popen[str], out: Path) -> dict[str, Any]:
    """What a run of ``PPO`` says of itself at its end."""
    _, errors = program.communicate(timeout=840)
    assert program.returncode == 0, errors
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    assert result["engine"] == "ray"
    return result


@pytest.mark.timeout(900)
def test_ppo_learns_on_three_hosts(cluster: Cluster, tmp_path: Path) -> None:
    """It reaches what it reaches on one machine; random actions reach -1,200."""
    for module in ("gymnasium", "torch", "matplotlib"):
        pytest.importorskip(module)
    out = tmp_path / "run"
    program = cluster.start_program(*PPO, "--out", str(out))
    assert learned(program, out)["mean_return"] > -400


@pytest.mark.timeout(900)
def test_ppo_resumes_on_the_hosts_that_are_left(
    cluster: Cluster, tmp_path: Path
) -> None:
    for module in ("gymnasium", "torch", "matplotlib"):
        pytest.importorskip(module)
    out = tmp_path / "run"
    program = cluster.start_program(*PPO, "--out", str(out))
    metrics = out / "metrics.jsonl"

    def has_begun() -> bool:
        return metrics.exists() and len(metrics.read_text().splitlines()) >= 3

    assert wait_until(has_begun, 200)
    cluster.hosts[2].pull_the_plug()
    _, errors = program.communicate(timeout=300)
    if program.returncode != 0:  # it had just asked something of the host
        assert "ActorUnavailableError" in errors or "ActorDiedError" in errors, errors
        program = cluster.start_program(*PPO, "--out", str(out), "--resume")
        assert learned(program, out)["mean_return"] > -400
    updates = [json.loads(line)["updates"] for line in metrics.read_text().splitlines()]
    assert updates == list(range(1, len(updates) + 1))  # none twice, none left out
