"""Actors that wait for resources, and what the ends of others do to them."""

from __future__ import annotations

import os
import signal

import pytest

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from polling import wait_until

import skate
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
