"""Ends what a session left behind whose supervisor could not do it.

The supervisor ends everything it started, and all that its workers started. Killed
itself, it cannot: its workers end with it, but not what *they* had started. Every
process of a session has the session's mark in the environment that it was started with,
and so have its children; that is how they are found. What a worker starts has the
worker's mark as well.
"""

from __future__ import annotations

import os
import signal
import time

MARK = "SKATE_SESSION_MARK"
WORKER_MARK = "SKATE_WORKER_MARK"
_PATIENCE_S = 5.0


def end_all(session_id: str, spare: set[int]) -> None:
    """Kill every process of the session but ``spare``, and wait until they are gone."""
    deadline = time.monotonic() + _PATIENCE_S
    while (found := _marked(session_id) - spare) and time.monotonic() < deadline:
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        time.sleep(0.005)


def mark_worker() -> None:
    """Let what this process starts be known as its own, whatever session it leads."""
    os.environ[WORKER_MARK] = str(os.getpid())


def worker_of(pid: int) -> int:
    """The pid of the worker that started it, or its parents; 0: it is not known."""
    mark = f"{WORKER_MARK}=".encode()
    for variable in _environment(str(pid)).split(b"\0"):
        if variable.startswith(mark) and variable[len(mark) :].isdigit():
            return int(variable[len(mark) :])
    return 0


def _marked(session_id: str) -> set[int]:
    mark = f"{MARK}={session_id}".encode()
    return {
        int(pid)
        for pid in filter(str.isdigit, os.listdir("/proc"))
        if mark in _environment(pid).split(b"\0")
    }


def _environment(pid: str) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:  # it has ended, or is somebody else's
        return b""
