"""A supervisor, or its zygote, that is stopped, and does not go on."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from processes import children, state_of, zygote_and_workers
from tests.polling import wait_until

import skate
from skate.util.state import list_actors

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from skate.engine.embedded import driver


def test_shutdown_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_END_TIMEOUT_S", 0.5)
    skate.init("embedded", num_cpus=1)
    (supervisor,) = children(os.getpid())
    os.kill(supervisor, signal.SIGSTOP)
    ending = threading.Thread(target=skate.shutdown, daemon=True)
    ending.start()
    ending.join(10)
    try:
        assert not ending.is_alive()
    finally:
        if ending.is_alive():
            os.kill(supervisor, signal.SIGKILL)
            ending.join()
    assert supervisor not in children(os.getpid())


@skate.remote
class Maker:
    def make(self, after: object = None) -> list[np.ndarray]:
        return [np.full(200_000, i) for i in range(2)]


def test_a_get_that_needs_it_waits_and_leaves_other_threads_alone() -> None:
    """The value lies in memory that has to be asked for; who ends the stop is one of
    those threads."""
    with skate.init("embedded", num_cpus=1):
        (supervisor,) = children(os.getpid())
        ref = Maker.remote().make.remote()
        skate.wait([ref], timeout=30)
        os.kill(supervisor, signal.SIGSTOP)

        def go_on() -> None:
            for _ in range(100):  # of what other threads may do meanwhile
                threading.Event().wait(0.005)
            os.kill(supervisor, signal.SIGCONT)

        thread = threading.Thread(target=go_on)
        thread.start()
        one, other = skate.get(ref)
        thread.join()
        assert (one == 0).all()
        assert (other == 1).all()
        assert skate.get(skate.put(2)) == 2


# A second is what is waited for it with a lock held.
STOP_S = 1.5


@contextlib.contextmanager
def stopped_for_a_while() -> Iterator[None]:
    (supervisor,) = children(os.getpid())
    os.kill(supervisor, signal.SIGSTOP)
    end = threading.Timer(STOP_S, os.kill, (supervisor, signal.SIGCONT))
    end.start()
    try:
        yield
    finally:
        end.join()


@skate.remote
def length(value: str) -> int:
    return len(value)


@skate.remote
def fail_late(signal_file: str) -> None:
    while os.path.exists(signal_file):
        time.sleep(0.001)
    raise ValueError("too bad" * 1000)


def test_a_task_whose_arguments_must_be_asked_for_is_run_later() -> None:
    with skate.init("embedded", num_cpus=1):
        assert skate.get(length.remote("")) == 0
        # Beyond what the worker has of its caller's memory.
        held = [skate.put(np.zeros(17 << 20, np.uint8)) for _ in range(2)]
        with stopped_for_a_while():
            refs = [length.remote("x" * 500) for _ in range(3)]
            assert skate.get(refs, timeout=60) == [500] * 3
        del held


def test_a_function_whose_code_must_be_asked_for_is_run_later() -> None:
    @skate.remote
    def other() -> int:
        return 7

    with skate.init("embedded", num_cpus=1):
        assert skate.get(length.remote("")) == 0
        held = [skate.put(np.zeros(17 << 20, np.uint8)) for _ in range(2)]
        with stopped_for_a_while():
            assert skate.get(other.remote(), timeout=60) == 7
        del held


@pytest.mark.parametrize("by_an_actor", [False, True])
def test_a_call_ends_with_its_dependencys_error_that_must_be_asked_for(
    by_an_actor: bool, tmp_path: pathlib.Path
) -> None:
    keep = tmp_path / "keep"
    keep.touch()
    with skate.init("embedded", num_cpus=1):
        actor = Maker.remote()
        assert len(skate.get(actor.make.remote())) == 2
        error = fail_late.remote(str(keep))
        call = actor.make if by_an_actor else length
        dependent = call.remote(error)
        with stopped_for_a_while():
            keep.unlink()
            with pytest.raises(ValueError, match="too bad"):
                skate.get(dependent, timeout=60)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Not for good, lest a test that fails hangs."""
    os.kill(pid, signal.SIGSTOP)
    end = threading.Timer(10, os.kill, (pid, signal.SIGCONT))
    end.start()
    try:
        yield
        assert state_of(pid) == "T", "it had to go on"
    finally:
        end.cancel()
        end.join()
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def interrupted() -> Iterator[None]:
    press = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    press.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        press.join()


def test_ctrl_c_ends_a_question_that_is_not_answered() -> None:
    with skate.init("embedded", num_cpus=1, resources={"x": 2}):
        (supervisor,) = children(os.getpid())
        with stopped(supervisor), interrupted():
            skate.available_resources()
        # The answer to the first is not taken for that to the next.
        assert list(list_actors()) == []
        assert skate.available_resources()["x"] == 2


def test_handler_of_a_signal_may_ask_while_a_question_waits() -> None:
    answers, states = [], []

    def ask_too(number: int, frame: object) -> None:
        states.append(state_of(supervisor))
        os.kill(supervisor, signal.SIGCONT)
        answers.append(skate.available_resources())

    before = signal.signal(signal.SIGUSR1, ask_too)
    try:
        with skate.init("embedded", num_cpus=1):
            (supervisor,) = children(os.getpid())
            press = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
            end = threading.Timer(10, os.kill, (supervisor, signal.SIGCONT))
            os.kill(supervisor, signal.SIGSTOP)
            for timer in (press, end):
                timer.start()
            answers.append(skate.available_resources())
            for timer in (press, end):
                timer.cancel()
                timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert states == ["T"]
    assert answers == [{"CPU": 1.0}] * 2


def test_kill_of_an_actor_whose_process_is_still_to_be_made_holds_up_nobody() -> None:
    with skate.init("embedded", num_cpus=1):
        assert skate.get(length.remote("")) == 0
        ((zygote,), _) = zygote_and_workers(os.getpid())
        with stopped(zygote):
            actor = Maker.remote()
            killing = threading.Thread(target=skate.kill, args=(actor,))
            killing.start()
            assert wait_until(lambda: skate.available_resources() == {"CPU": 1.0})
            with interrupted():
                skate.kill(actor)
            assert killing.is_alive()
        killing.join()
        with pytest.raises(skate.exceptions.ActorDiedError):
            skate.get(actor.make.remote())
