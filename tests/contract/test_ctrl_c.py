"""Ctrl-C, or a notebook's interrupt, in a driver that waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Counter, Signal, wait_for
from polling import wait_until

import skate

pytestmark = pytest.mark.differs(
    ray="Ray's own handling of the signal: the call ends, the tasks go on"
)


def interrupt_once(begun: Callable[[], object]) -> threading.Thread:
    """Sends this process what Ctrl-C sends, once ``begun`` has returned."""

    def send() -> None:
        begun()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("call", ["get", "wait"])
def test_ctrl_c_ends_the_call_and_leaves_actors_alive(engine: str, call: str) -> None:
    gate, counter = Signal.remote(), Counter.remote()
    ref = wait_for.remote(gate)
    thread = interrupt_once(lambda: skate.get(gate.wait_for_waiting.remote(1)))
    with pytest.raises(KeyboardInterrupt):
        getattr(skate, call)([ref])
    thread.join()
    assert skate.get(counter.add.remote()) == 1
    assert skate.get(gate.waiting.remote()) == 1
    skate.get(gate.set.remote())
    skate.wait([ref])


SCRIPT = """
import pathlib, sys, time
import skate
skate.init({engine!r}, num_cpus=2)
@skate.remote
def sleep():
    pathlib.Path({path!r}).touch()
    time.sleep(1000)
skate.get([sleep.remote() for _ in range(4)])
"""


def test_ctrl_c_ends_a_script_and_all_that_it_started(
    engine_name: str, tmp_path: Path
) -> None:
    path = tmp_path / "begun"
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(engine=engine_name, path=str(path))],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as script:
        try:
            assert wait_until(path.exists, timeout=60)
            os.killpg(script.pid, signal.SIGINT)
            _, err = script.communicate(timeout=60)
        finally:
            script.kill()
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert script.returncode == -signal.SIGINT
