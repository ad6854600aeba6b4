"""Actors end with their last handle, whatever their program has left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from polling import wait_until
from processes import alive

import skate
from skate.exceptions import TaskCancelledError, WorkerCrashedError


@pytest.fixture(autouse=True)
def session() -> Iterator[None]:
    with skate.init("embedded", num_cpus=2, resources={"robot": 1}):
        yield


@skate.remote(num_cpus=0, resources={"robot": 1})
class Robot:
    async def pid(self) -> int:
        return os.getpid()

    async def block_a_thread(self, blocked: Path) -> None:
        def block() -> None:
            blocked.touch()
            threading.Event().wait()

        await asyncio.to_thread(block)

    async def start_a_task_that_stays(self) -> None:
        async def stay() -> None:
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    pass

        self.task = asyncio.get_running_loop().create_task(stay())
        await asyncio.sleep(0)

    async def write_later(self, path: Path) -> None:
        async def write() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.to_thread(path.touch)

        self.task = asyncio.get_running_loop().create_task(write())
        await asyncio.sleep(0)

    async def cancel_all_tasks(self) -> str:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        return "done"

    async def stop_the_loop(self) -> None:
        asyncio.get_running_loop().stop()


def test_a_thread_that_blocks_does_not_keep_what_an_async_actor_held(
    tmp_path: Path,
) -> None:
    first = Robot.remote()
    call = first.block_a_thread.remote(tmp_path / "blocked")
    assert wait_until((tmp_path / "blocked").exists)
    skate.cancel(call)
    with pytest.raises(TaskCancelledError):
        skate.get(call, timeout=20)
    del first, call
    assert skate.get(Robot.remote().pid.remote(), timeout=20)


def test_a_task_that_is_not_cancelled_does_not_keep_what_an_async_actor_held() -> None:
    first = Robot.remote()
    skate.get(first.start_a_task_that_stays.remote())
    del first
    assert skate.get(Robot.remote().pid.remote(), timeout=20)


def test_tasks_of_an_async_actor_that_are_left_clean_up_at_its_end(
    tmp_path: Path,
) -> None:
    first = Robot.remote()
    skate.get(first.write_later.remote(tmp_path / "written"))
    del first
    assert skate.get(Robot.remote().pid.remote(), timeout=20)
    assert (tmp_path / "written").exists()


@pytest.mark.parametrize("how", ["cancel_all_tasks", "stop_the_loop"])
def test_an_async_actor_outlives_what_its_method_does_to_the_loop(how: str) -> None:
    actor = Robot.remote()
    pid = skate.get(actor.pid.remote())
    skate.get(getattr(actor, how).remote(), timeout=20)
    for _ in range(2):
        assert skate.get(actor.pid.remote(), timeout=20) == pid
    del actor
    assert wait_until(lambda: not alive(pid))


@skate.remote(num_cpus=0)
class Waits:
    """Keeps calls, and wants to be called again long after."""

    def pid(self) -> int: ...

    def keep(self) -> None: ...

    @skate.receiver
    def receive(self, calls: Sequence[skate.ReceivedCall]) -> float:
        for call in calls:
            if call.method == "pid":
                call.answer(os.getpid())
            else:
                self.kept = call
        return 3600.0


@skate.remote(max_retries=0)
def die_after_a_call(actor: skate.ActorHandle[Waits]) -> None:
    kept = actor.keep.remote()
    skate.get(actor.pid.remote())
    os.kill(os.getpid(), signal.SIGKILL)
    del kept


def test_a_receiver_does_not_wait_for_when_nobody_wants_an_answer() -> None:
    actor = Waits.remote()
    pid = skate.get(actor.pid.remote())
    with pytest.raises(WorkerCrashedError):
        skate.get(die_after_a_call.remote(actor), timeout=20)
    del actor
    assert wait_until(lambda: not alive(pid))
