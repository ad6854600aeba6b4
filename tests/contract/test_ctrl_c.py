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
from helpers import Counter, Signal
from polling import wait_until

import skate


def interrupt_once(begun: Callable[[], object]) -> threading.Thread:
    """Sends this process what Ctrl-C sends, once ``begun`` has returned.

    And not before the main thread is in a call of skate's.
    """
    home = str(Path(skate.__file__).parent)
    main = threading.get_ident()

    def is_in_call() -> bool:
        return sys._current_frames()[main].f_code.co_filename.startswith(home)

    def send() -> None:
        begun()
        wait_until(is_in_call, timeout=60)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@skate.remote(num_cpus=0)
def wait_for(gate: skate.ActorHandle[Signal]) -> None:
    # With a timeout: until the signal is sent, all that there is waits, in a circle.
    skate.get(gate.wait.remote(), timeout=100)


@skate.remote(num_cpus=0)
def parent(gate: skate.ActorHandle[Signal]) -> None:
    skate.get(wait_for.remote(gate))


CALLS: dict[str, Callable[[list[skate.ObjectRef[None]]], object]] = {
    "get": skate.get,
    "get one": lambda refs: skate.get(refs[0]),
    "wait": skate.wait,
    "as_completed": lambda refs: next(skate.as_completed(refs)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_ctrl_c_cancels_what_the_call_waits_for_and_leaves_actors_alive(
    engine: str, call: Callable[[list[skate.ObjectRef[None]]], object]
) -> None:
    gate, counter = Signal.remote(), Counter.remote()
    other, ref = wait_for.remote(gate), parent.remote(gate)
    thread = interrupt_once(lambda: skate.get(gate.wait_for_waiting.remote(2)))
    with pytest.raises(KeyboardInterrupt):
        call([ref])
    thread.join()
    with pytest.raises(skate.exceptions.TaskCancelledError):
        skate.get(ref)
    assert skate.get(counter.add.remote()) == 1
    skate.get(gate.set.remote())
    skate.get(other)  # the call had nothing to do with it


def test_ctrl_c_cancels_the_tasks_of_a_map(engine: str) -> None:
    gate = Signal.remote()
    thread = interrupt_once(lambda: skate.get(gate.wait_for_waiting.remote(2)))
    with pytest.raises(KeyboardInterrupt):
        next(skate.map_unordered(wait_for, [gate, gate]))
    thread.join()  # and no task is left, as the fixture checks


SCRIPT = """
import pathlib, sys, time
import skate
skate.init({engine!r})
@skate.remote
def sleep():
    pathlib.Path({path!r}).touch()
    time.sleep(1000)
skate.get([sleep.remote() for _ in range(2)])
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
    # Ray ends its driver by an exit, not by the signal.
    assert script.returncode == (1 if engine_name == "ray" else -signal.SIGINT)
