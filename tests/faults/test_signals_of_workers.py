"""Handlers of signals that user code has set run when the signal comes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from polling import wait_until

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

import skate
from skate.exceptions import ActorDiedError


@pytest.fixture(autouse=True)
def session() -> Iterator[None]:
    with skate.init("embedded", num_cpus=1):
        yield


def touch_at_signal(path: str) -> int:
    signal.signal(signal.SIGUSR1, lambda *_: Path(path).touch())
    return os.getpid()


@skate.remote
class Actor:
    def __init__(self, path: str) -> None:
        self.process = touch_at_signal(path)
        signal.signal(signal.SIGTERM, self.leave)

    def pid(self) -> int:
        return self.process

    def leave(self, *_: object) -> None:
        raise SystemExit


@skate.remote(max_retries=0)
def task(path: str) -> int:
    return touch_at_signal(path)


@pytest.mark.parametrize("max_concurrency", [1, 3])
def test_an_idle_actor_runs_its_handlers(max_concurrency: int, tmp_path: Path) -> None:
    path = tmp_path / "heard"
    actor = Actor.options(max_concurrency=max_concurrency).remote(str(path))
    pid = skate.get(actor.pid.remote())
    os.kill(pid, signal.SIGUSR1)
    assert wait_until(path.exists)
    assert skate.get(actor.pid.remote()) == pid
    os.kill(pid, signal.SIGTERM)
    assert wait_until(lambda: not Path(f"/proc/{pid}").exists())
    with pytest.raises(ActorDiedError):
        skate.get(actor.pid.remote())


def test_an_idle_worker_runs_the_handlers_of_its_tasks(tmp_path: Path) -> None:
    path = tmp_path / "heard"
    pid = skate.get(task.remote(str(path)))
    os.kill(pid, signal.SIGUSR1)
    assert wait_until(path.exists, timeout=4.0)  # not only when it may be one too many
    assert skate.get(task.remote(str(path))) == pid


class _AlarmError(Exception):
    pass


@skate.remote(num_returns="streaming")
def items(path: Path) -> Iterator[int]:
    while not path.exists():
        yield 0


@skate.remote(num_cpus=0)
def wait_for_file(path: Path) -> None:
    assert wait_until(path.exists, timeout=100)


def test_a_signal_gets_through_while_messages_come_without_end(tmp_path: Path) -> None:
    def ring(number: int, frame: object) -> None:
        raise _AlarmError

    path = tmp_path / "the end"
    before = signal.signal(signal.SIGALRM, ring)
    try:
        stream = items.remote(path)
        next(stream)
        waits = wait_for_file.remote(path)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(_AlarmError):
            skate.get(waits)  # which ends only after that
        path.touch()
        skate.get(waits)
    finally:
        signal.signal(signal.SIGALRM, before)
