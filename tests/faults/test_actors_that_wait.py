"""Actors that wait for resources, and what the ends of others do to them."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from polling import wait_until

import skate
from skate import _runtime
from skate.engine.protocol import ActorState
from skate.exceptions import ActorUnavailableError


@skate.remote
def echo(x: int) -> int:
    return x


@skate.remote(num_cpus=0, resources={"robot": 1})
class Robot:
    def answer(self) -> int:
        return 1

    def own_another(self) -> bool:
        self.other = Robot.remote()
        return True


@skate.remote(num_cpus=1, max_restarts=-1)
class Restarts:
    def pid(self) -> int:
        return os.getpid()

    def wait_for_a_robot(self) -> int:
        return skate.get(Robot.remote().answer.remote())


def test_an_actor_that_waits_for_what_its_owner_had_ends_with_it() -> None:
    with skate.init("embedded", num_cpus=2, resources={"robot": 1}):
        owner = Robot.remote()
        assert skate.get(owner.own_another.remote())
        skate.kill(owner)
        assert skate.get(echo.remote(1), timeout=20) == 1
        another = Robot.remote()
        assert skate.get(another.answer.remote(), timeout=20) == 1


def test_an_actor_that_dies_while_it_waits_for_another_is_restarted() -> None:
    with skate.init("embedded", num_cpus=2, resources={"robot": 1}):
        holder = Robot.remote()
        assert skate.get(holder.answer.remote()) == 1
        actor = Restarts.remote()
        pid = skate.get(actor.pid.remote())
        assert skate.available_resources()["CPU"] == 1
        waits = actor.wait_for_a_robot.remote()
        # Its CPU is free while it waits.
        assert wait_until(lambda: skate.available_resources()["CPU"] == 2)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ActorUnavailableError):
            skate.get(waits, timeout=20)
        assert skate.get(actor.pid.remote(), timeout=20) != pid
        skate.kill(actor)
        assert skate.get(holder.answer.remote(), timeout=20) == 1


@skate.remote(num_cpus=1)
class OneCpu:
    def answer(self) -> int:
        return 1


@skate.remote(num_cpus=2)
def need_all(x: int) -> int:
    return x


def test_plain_tasks_run_beside_one_that_waits_for_a_cpu_of_an_actor() -> None:
    with skate.init("embedded", num_cpus=2):
        actor = OneCpu.remote()
        assert skate.get(actor.answer.remote()) == 1
        waits = need_all.remote(3)
        # One after the other: the request for two CPUs has come before most of them.
        for i in range(20):
            assert skate.get(echo.remote(i), timeout=20) == i
        assert not skate.wait([waits], timeout=0)[0]
        skate.kill(actor)
        assert skate.get(waits, timeout=20) == 3


@skate.remote(num_cpus=3)
class ThreeCpus:
    def answer(self) -> int:
        return 1


@skate.remote(max_retries=0)
def sleep_until(started: Path, go_on: Path) -> None:
    started.touch()
    while not go_on.exists():
        time.sleep(0.01)


def test_plain_tasks_run_beside_one_that_does_not_end_and_a_request_for_its_cpu(
    tmp_path: Path,
) -> None:
    started, go_on = tmp_path / "started", tmp_path / "go on"
    with skate.init("embedded", num_cpus=3):
        endless = sleep_until.remote(started, go_on)
        assert wait_until(started.exists)
        actor = ThreeCpus.remote()
        answer = actor.answer.remote()
        held = "what is free is held for an actor that needs 3 CPUs"
        assert wait_until(lambda: held in skate.why(echo.remote(5)))
        for i in range(4):
            assert skate.get(echo.remote(i), timeout=20) == i
        assert not skate.wait([answer], timeout=0)[0]
        go_on.touch()
        assert skate.get(answer, timeout=20) == 1
        skate.get(endless)


@skate.remote(max_retries=0)
def poll_a_child(started: Path, go_on: Path) -> int:
    started.touch()
    while not go_on.exists():
        time.sleep(0.01)
    child = echo.remote(7)
    while not skate.wait([child], timeout=0)[0]:
        time.sleep(0.01)
    value: int = skate.get(child)
    return value


def test_a_task_that_polls_its_child_ends_beside_a_request_for_its_cpu(
    tmp_path: Path,
) -> None:
    with skate.init("embedded", num_cpus=2):
        started, go_on = tmp_path / "started", tmp_path / "go on"
        parent = poll_a_child.remote(started, go_on)
        assert wait_until(started.exists)
        waits = need_all.remote(3)
        assert wait_until(lambda: skate.available_resources()["CPU"] == 1)
        go_on.touch()
        assert skate.get(parent, timeout=20) == 7
        assert skate.get(waits, timeout=20) == 3


@skate.remote(num_cpus=0, resources={"robot": 1})
class NotedRobot:
    def __init__(self, made: Path, argument: object = None) -> None:
        made.touch()

    def answer(self) -> int:
        return 2


def states() -> list[str]:
    return [info.state for info in _runtime.current().list_actors()]


def test_an_actor_that_nobody_can_reach_is_not_made_and_holds_up_nobody(
    tmp_path: Path,
) -> None:
    with skate.init("embedded", num_cpus=1, resources={"robot": 1}):
        holder = Robot.remote()
        assert skate.get(holder.answer.remote()) == 1
        for i in range(3):
            NotedRobot.remote(tmp_path / f"dropped {i}")
        assert wait_until(lambda: states().count(ActorState.DEAD) == 3)
        # Calls that wait are done, and then it ends.
        answer = NotedRobot.remote(tmp_path / "called").answer.remote()
        last = NotedRobot.remote(tmp_path / "kept")
        del holder
        assert skate.get(answer, timeout=20) == 2
        assert skate.get(last.answer.remote(), timeout=20) == 2
        assert {path.name for path in tmp_path.iterdir()} == {"called", "kept"}


def test_an_actor_whose_argument_comes_too_late_for_anybody_is_not_made(
    tmp_path: Path,
) -> None:
    started, go_on = tmp_path / "started", tmp_path / "go on"
    with skate.init("embedded", num_cpus=1, resources={"robot": 1}):
        argument = sleep_until.remote(started, go_on)
        NotedRobot.remote(tmp_path / "dropped", argument)
        # It had what it needs, but for the argument.
        another = Robot.remote()
        assert skate.get(another.answer.remote(), timeout=20) == 1
        go_on.touch()
        skate.get(argument)
        assert wait_until(lambda: states().count(ActorState.DEAD) == 1)
        assert not (tmp_path / "dropped").exists()


@skate.remote
def wait_for_file(path: Path) -> None:
    assert wait_until(path.exists, timeout=60)


@skate.remote(num_cpus=1)
class Background:
    """A thread of its own waits, and then computes."""

    def __init__(self, path: Path) -> None:
        self.goes_on = False
        ref = wait_for_file.remote(path)
        threading.Thread(target=self.compute, args=(ref,), daemon=True).start()

    def compute(self, ref: skate.ObjectRef[None]) -> None:
        skate.get(ref)
        self.goes_on = True

    def does_go_on(self) -> bool:
        return self.goes_on


def test_an_actor_whose_thread_goes_on_while_it_is_idle_has_its_cpu_back(
    tmp_path: Path,
) -> None:
    def free() -> float:
        return skate.available_resources()["CPU"]

    with skate.init("embedded", num_cpus=3):
        actor = Background.remote(tmp_path / "goes on")
        assert wait_until(
            lambda: free() == 2
        )  # the task has one, and it has lent its own
        skate.get(actor.does_go_on.remote())
        (tmp_path / "goes on").touch()
        assert wait_until(lambda: skate.get(actor.does_go_on.remote()))
        assert wait_until(lambda: free() == 2)
        assert not wait_until(lambda: free() == 3, timeout=0.5)
