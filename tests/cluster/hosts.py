"""A cluster of hosts on this machine: network namespaces, each with a Ray node.

Every host has an address and a loopback of its own, and reaches the others through a
bridge alone. Nothing is changed in the machine's own network.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from polling import wait_until

PORT = 6379


def why_not() -> str:
    """What keeps this machine from running the tests; empty if nothing does."""
    if shutil.which("ip") is None:
        return "there is no 'ip' (package iproute2)"
    name = f"sk{os.getpid()}t"
    tried = _try("ip", "netns", "add", name)
    if tried:
        return f"network namespaces are not allowed: {tried}"
    try:
        return _try("ip", "-n", name, "link", "add", "bridge", "type", "bridge")
    finally:
        _try("ip", "netns", "del", name)


def _try(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Host:
    """One machine of the cluster."""

    def __init__(self, hub: str, number: int) -> None:
        self.name = f"{hub}h{number}"
        self.address = f"10.98.{os.getpid() % 250}.{number}"
        self._node: subprocess.Popen[bytes] | None = None
        _run("ip", "netns", "add", self.name)
        wire = f"sk{os.getpid() % 10000}v{number}"
        _run("ip", "link", "add", wire, "netns", hub, "type", "veth",
             "peer", "name", "eth0", "netns", self.name)  # fmt: skip
        _run("ip", "-n", hub, "link", "set", wire, "master", "bridge", "up")
        inside = ("ip", "-n", self.name)
        _run(*inside, "address", "add", f"{self.address}/24", "dev", "eth0")
        _run(*inside, "link", "set", "eth0", "up")
        _run(*inside, "link", "set", "lo", "up")

    def popen(
        self, *command: str, environment: dict[str, str], **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a process on this host."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command],
            env={**os.environ, "RAY_AUTH_MODE": "token", **environment},
            start_new_session=True,
            **options,
        )

    def start_node(
        self, head: Host, directory: Path, log: Path, cpus: int, token: str
    ) -> None:
        options = [
            f"--node-ip-address={self.address}",
            f"--num-cpus={cpus}",
            "--object-store-memory=100000000",
            "--disable-usage-stats",
            "--block",
        ]
        if head is self:
            config = '{"health_check_failure_threshold": 2, "worker_niceness": 0}'
            options += ["--head", f"--port={PORT}", "--include-dashboard=false"]
            options += [f"--temp-dir={directory}", f"--system-config={config}"]
        else:
            options += [f"--address={head.address}:{PORT}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
        with log.open("wb") as output:
            self._node = self.popen(
                *command,
                environment={"RAY_AUTH_TOKEN": token},
                stdout=output,
                stderr=output,
            )

    def pull_the_plug(self) -> None:
        """End every process of this host at once, as a power failure would."""
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._node is not None:
            self._node.wait()

    def _processes(self) -> list[int]:
        done = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        return [int(pid) for pid in done.stdout.split()]

    def remove(self) -> None:
        self.pull_the_plug()
        wait_until(lambda: not self._processes())
        _try("ip", "netns", "del", self.name)


class Cluster:
    """Hosts 0, 1, ...; host 0 is the head, where the driver runs."""

    def __init__(self, num_hosts: int, cpus: int) -> None:
        self._hub = f"sk{os.getpid()}"
        self._token = secrets.token_hex(32)
        self._directory = Path(tempfile.mkdtemp(prefix="sk-"))
        self._programs: list[subprocess.Popen[str]] = []
        self.hosts: list[Host] = []
        try:
            _run("ip", "netns", "add", self._hub)
            _run("ip", "-n", self._hub, "link", "add", "bridge", "type", "bridge")
            _run("ip", "-n", self._hub, "link", "set", "bridge", "up")
            for number in range(1, num_hosts + 1):
                self.hosts.append(Host(self._hub, number))
            head = self.hosts[0]
            for host in self.hosts:
                log = self._directory / f"{host.name}.log"
                host.start_node(head, self._directory, log, cpus, self._token)
                assert wait_until(lambda log=log: b"started" in log.read_bytes(), 60), (
                    log.read_text()
                )
        except BaseException:
            self.remove()
            raise

    @property
    def address(self) -> str:
        return f"{self.hosts[0].address}:{PORT}"

    def start_program(self, *command: str) -> subprocess.Popen[str]:
        """A skate program on the head, which finds the cluster by its environment."""
        program = self.hosts[0].popen(
            sys.executable,
            *command,
            environment={
                "SKATE_ENGINE": "ray",
                "RAY_ADDRESS": self.address,
                "RAY_AUTH_TOKEN": self._token,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._programs.append(program)
        return program

    def remove(self) -> None:
        for host in self.hosts:
            host.remove()
        for program in self._programs:
            program.communicate()  # it has ended; close its pipes
        _try("ip", "netns", "del", self._hub)
        shutil.rmtree(self._directory, ignore_errors=True)
