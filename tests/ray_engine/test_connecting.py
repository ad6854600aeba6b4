"""Reaching a Ray cluster: what is refused, and what ``skate doctor`` says."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest

import skate
from skate.exceptions import EngineError

pytest.importorskip("ray", reason="Ray is not installed")


def run(text: str, **environment: str) -> str:
    """What a script of its own says at the end."""
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | environment
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.stdout + done.stderr


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(EngineError, match=f"nothing answers at '{address}'"):
        skate.init("ray", address=address)
    assert not skate.is_initialized()


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("head", ValueError, "give the host and port"),
        ("ray://head:10001", EngineError, "does not go through Ray Client"),
    ],
)
def test_an_address_of_another_kind_is_refused(
    address: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        skate.init("ray", address=address)


def test_resources_of_a_cluster_cannot_be_given() -> None:
    with pytest.raises(ValueError, match="num_cpus, resources: there is a cluster"):
        skate.init("ray", address="127.0.0.1:1", num_cpus=2, resources={"x": 1})


def test_without_ray_the_error_says_how_to_install_it() -> None:
    said = run(
        """
        import sys
        sys.modules["ray"] = None
        import skate
        skate.init("ray")
        """
    )
    assert "pip install 'skate[ray]'" in said


@pytest.mark.usefixtures("shared_ray")
def test_another_version_of_ray_or_python_is_refused_before_connecting() -> None:
    said = run(
        f"""
        import ray
        ray.__version__ = "2.61.0"
        import skate
        skate.init("ray", address={os.environ["RAY_ADDRESS"]!r})
        """
    )
    assert "EngineError: the cluster at" in said
    assert "this process has Ray 2.61.0" in said


@pytest.mark.usefixtures("shared_ray")
def test_a_connection_that_was_there_is_used_and_stays() -> None:
    import ray

    with pytest.raises(ValueError, match="connected to Ray already"):
        skate.init("ray", num_cpus=1)
    with pytest.raises(ValueError, match="connected to Ray at"):
        skate.init("ray", address="10.0.0.1:6379")
    with skate.init("ray") as session:
        assert session.num_cpus == 2
    assert ray.is_initialized()


@pytest.mark.usefixtures("shared_ray")
def test_doctor_says_what_works_and_what_each_node_has() -> None:
    pytest.importorskip("typer")
    done = doctor()
    assert done.returncode == 0, done.stderr
    assert "embedded  works: " in done.stdout
    assert "ray       works: 2 CPUs" in done.stdout
    assert "2 CPU, 1 GPU, 4 token; Python 3" in done.stdout


def test_doctor_says_why_an_engine_does_not_work() -> None:
    pytest.importorskip("typer")
    done = doctor("--address", f"127.0.0.1:{free_port()}", SKATE_ENGINE="ray")
    assert "ray       does not work: nothing answers at" in done.stdout
    assert done.returncode == 1
    assert "engine='ray', which would be used, does not work" in done.stderr


def doctor(*arguments: str, **environment: str) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "skate", "doctor", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
