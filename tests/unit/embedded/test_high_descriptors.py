"""Descriptors over 1023, which select() does not take, are served like all others."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import pty
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from skate.engine.embedded import terminal, wire
from skate.engine.protocol import EngineConfig

HIGH = 1500


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard <= 2 * HIGH:
        pytest.skip(f"the hard limit of descriptors is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * HIGH), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def lifted(fd: int) -> int:
    """The same with a high number."""
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGH)
    os.close(fd)
    return high


def test_zygote_whose_socket_has_a_high_number_waits_and_ends_in_order() -> None:
    mine, theirs = wire.socket_pair()
    fd = lifted(theirs.detach())
    module = "skate.engine.embedded.zygote"
    zygote = subprocess.Popen(
        [sys.executable, "-m", module, str(fd), str(os.getpid())], pass_fds=[fd]
    )
    os.close(fd)
    greeting = {
        "sys_path": sys.path,
        "preload": [],
        "config": EngineConfig(num_cpus=1),
        "session_id": os.urandom(8).hex(),
        "max_files": 2 * HIGH,
    }
    with mine, open(os.devnull) as session:
        wire.send(mine, pickle.dumps(greeting), [session.fileno()])
    assert zygote.wait(30) == 0


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """What is typed here, the terminal reads."""
    master, slave = pty.openpty()
    with open(slave) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield master
    os.close(master)


def stop(served: terminal.Terminal, name: str) -> socket.socket:
    ours, theirs = socket.socketpair()
    served.stopped(f"task({name})", lifted(theirs.detach()))
    ours.settimeout(10)
    return ours


def test_a_task_with_a_high_number_converses(keyboard: int) -> None:
    with stop(terminal.Terminal(), "one") as task:
        assert task.recv(1) == terminal.YES
        os.write(keyboard, b"next\n")
        assert task.recv(100) == b"next\n"


def test_terminal_that_fails_for_one_task_serves_the_next(
    keyboard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, failed = terminal.Terminal(), threading.Event()

    def converse(connection: socket.socket) -> None:
        if not failed.is_set():
            failed.set()
            raise ValueError("the terminal fails")

    monkeypatch.setattr(terminal, "_converse", converse)
    for name in ("one", "two"):
        with stop(served, name) as task, contextlib.suppress(ConnectionResetError):
            assert task.recv(1) == terminal.YES
            assert task.recv(1) == b""
