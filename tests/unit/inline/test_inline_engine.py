"""What only the inline engine promises: threads, order, debuggers, deadlocks."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import traceback
from typing import TYPE_CHECKING, Any

import pytest

import skate
from skate.exceptions import ActorDiedError, DeadlockError, TaskCancelledError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

LOG: list[Any] = []


@pytest.fixture(autouse=True)
def session() -> Iterator[None]:
    LOG.clear()
    skate.init("inline", num_cpus=2, resources={"token": 1})
    yield
    skate.shutdown()


# Tasks of this module are imported by name: they see its LOG, as the driver does.
@skate.remote
def log(x: Any) -> Any:
    LOG.append(x)
    return x


@skate.remote
def thread_of_task() -> tuple[int, list[str]]:
    return threading.get_ident(), [frame.name for frame in traceback.extract_stack()]


@skate.remote
class Logger:
    def log(self, x: Any) -> int:
        LOG.append(x)
        return threading.get_ident()

    def call(self, other: skate.ActorHandle[Any], x: Any) -> Any:
        return skate.get(other.log.remote(x))

    def circle(self, me: skate.ActorHandle[Any]) -> Any:
        return skate.get(me.log.remote("never"))

    def die(self, me: skate.ActorHandle[Any]) -> None:
        skate.kill(me)
        LOG.append("survived")


# Threads and order ------------------------------------------------------------------


def test_a_task_that_get_waits_for_runs_below_its_caller() -> None:
    thread, names = skate.get(thread_of_task.remote())
    assert thread == threading.get_ident()
    assert "test_a_task_that_get_waits_for_runs_below_its_caller" in names


def test_a_child_runs_below_its_parent() -> None:
    @skate.remote
    def parent() -> Any:
        return skate.get(thread_of_task.remote())

    thread, names = skate.get(parent.remote())
    assert thread == threading.get_ident()
    assert names.index("parent") < names.index("thread_of_task")


def test_an_actor_has_one_thread_of_its_own() -> None:
    logger = Logger.remote()
    threads = [skate.get(logger.log.remote(1)) for _ in range(2)]
    threads += skate.get(skate.wait([logger.log.remote(2)])[0])
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


def test_nothing_runs_until_the_driver_waits() -> None:
    ref = log.remote(1)
    assert LOG == []
    skate.wait([ref])
    assert LOG == [1]


def test_tasks_start_in_the_order_in_which_they_were_submitted() -> None:
    refs = [log.remote(i) for i in range(5)]
    skate.get(refs[4])
    assert LOG == [0, 1, 2, 3, 4]


def test_get_returns_before_later_tasks_have_run() -> None:
    first, second = log.remote(1), log.remote(2)
    skate.get(first)
    assert LOG == [1]
    skate.get(second)


def test_as_completed_yields_each_result_before_the_next_task_runs() -> None:
    for ref in skate.as_completed([log.remote(i) for i in range(3)]):
        assert len(LOG) == skate.get(ref) + 1


def test_two_runs_of_a_program_take_the_same_order() -> None:
    def run() -> list[Any]:
        LOG.clear()
        loggers = [Logger.remote() for _ in range(3)]
        refs = [
            caller.call.remote(callee, (i, j))
            for i, caller in enumerate(loggers)
            for j, callee in enumerate(loggers)
            if i < j
        ]
        refs += [log.remote(i) for i in range(3)]
        skate.wait(refs, num_returns=len(refs))
        return list(LOG)

    assert run() == run()


def test_asking_about_the_session_lets_tasks_run() -> None:
    log.remote(1)
    skate.available_resources()
    assert LOG == [1]


def test_a_loop_that_never_rests_does_not_keep_others_from_running() -> None:
    @skate.remote
    class Busy:
        async def spin(self) -> None:
            while True:
                await asyncio.sleep(0)

    busy = Busy.remote()
    busy.spin.remote()
    skate.wait([busy.spin.remote()], timeout=0)
    assert skate.get(log.remote("ran"), timeout=60) == "ran"


def test_an_actor_that_kills_itself_stops_there() -> None:
    logger = Logger.remote()
    with pytest.raises(ActorDiedError):
        skate.get(logger.die.remote(logger))
    assert LOG == []


# The outside world ----------------------------------------------------------------


@skate.remote
class Server:
    async def echo(self, port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        received = await reader.read(100)
        writer.close()
        await writer.wait_closed()
        return received

    async def compute(self, x: int) -> int:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, pow, x, 2)


def test_an_async_actor_may_wait_for_sockets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ref = Server.remote().echo.remote(listener.getsockname()[1])
        assert skate.wait([ref], timeout=0)[0] == []
        connection, _ = listener.accept()
        assert skate.get(log.remote("meanwhile")) == "meanwhile"
        connection.sendall(b"hello")
        connection.close()
        assert skate.get(ref) == b"hello"


def test_an_async_actor_may_wait_for_threads() -> None:
    assert skate.get(Server.remote().compute.remote(3)) == 9


# Deadlocks ------------------------------------------------------------------------


def test_a_circle_of_calls_is_an_error_that_shows_it() -> None:
    logger = Logger.remote()
    with pytest.raises(DeadlockError) as caught:
        skate.get(logger.circle.remote(logger))
    text = str(caught.value)
    assert "the driver waits in get of test_inline_engine.Logger.circle" in text
    assert "Logger.circle waits in get of test_inline_engine.Logger.log" in text
    assert skate.get(log.remote("alive")) == "alive"


def test_a_resource_that_is_never_given_back_is_an_error_that_names_it() -> None:
    @skate.remote(resources={"token": 1})
    def hog() -> Any:
        return skate.get(log.options(resources={"token": 1}).remote(1))

    with pytest.raises(
        DeadlockError, match=r"log needs 1 CPU, 1 token; free: 2 CPU, 0"
    ):
        skate.get(hog.remote())


def test_a_timeout_is_no_deadlock() -> None:
    @skate.remote
    class Never:
        async def wait(self) -> None:
            await asyncio.Event().wait()

    never = Never.remote()
    ref = never.wait.remote()
    assert skate.wait([ref], timeout=0.01) == ([], [ref])


def test_another_thread_of_the_driver_may_still_end_a_wait() -> None:
    @skate.remote
    class Gate:
        def __init__(self) -> None:
            self.event = asyncio.Event()

        async def wait(self) -> str:
            await self.event.wait()
            return "open"

        async def open(self) -> None:
            self.event.set()

    gate = Gate.remote()
    ref = gate.wait.remote()
    go = threading.Event()

    def open_later() -> None:
        go.wait()
        skate.get(gate.open.remote())

    thread = threading.Thread(target=open_later)
    thread.start()
    skate.wait([ref], timeout=0)
    go.set()
    assert skate.get(ref) == "open"
    thread.join()


# Debuggers and signals ------------------------------------------------------------


def traced_by(trace: Any, work: Any) -> None:
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("how", ["get", "wait", "actor"])
def test_a_debugger_of_the_driver_sees_the_code_of_tasks(how: str) -> None:
    seen: set[str] = set()

    def trace(frame: FrameType, event: str, arg: Any) -> None:
        seen.add(frame.f_code.co_name)

    def work() -> None:
        if how == "actor":
            skate.get(Logger.remote().log.remote(1))
        elif how == "get":
            skate.get(log.remote(1))
        else:
            skate.wait([log.remote(1)])

    traced_by(trace, work)
    assert "log" in seen
    assert LOG == [1]


SCRIPT = textwrap.dedent(
    """
    import skate
    skate.init("inline")

    @skate.remote
    def double(number):
        result = number * 2
        return result

    @skate.remote
    class Actor:
        def triple(self, number):
            result = number * 3
            return result

    print(skate.get(double.remote(21)))
    print(skate.get(Actor.remote().triple.remote(5)))
    """
).lstrip()


def test_breakpoints_of_pdb_stop_in_tasks_and_in_actors(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    lines = [i for i, s in enumerate(SCRIPT.splitlines(), 1) if "return result" in s]
    commands = [*(f"break {line}" for line in lines), "continue"]
    commands += ["p ('stopped', result)", "continue"] * 2 + ["quit"]
    done = subprocess.run(
        [sys.executable, "-m", "pdb", str(script)],
        input="\n".join(commands),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "('stopped', 42)" in done.stdout, done.stdout + done.stderr
    assert "('stopped', 15)" in done.stdout, done.stdout + done.stderr


@skate.remote
def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)
    LOG.append("went on")


@skate.remote
class Interrupter:
    def interrupt(self) -> None:
        signal.raise_signal(signal.SIGINT)  # Python runs handlers in the main thread


def test_ctrl_c_in_a_task_reaches_the_driver() -> None:
    with pytest.raises(KeyboardInterrupt):
        skate.get(interrupt.remote())
    assert LOG == []
    assert skate.get(log.remote("alive")) == "alive"


def test_ctrl_c_while_an_actor_runs_reaches_the_driver() -> None:
    interrupter = Interrupter.remote()
    with pytest.raises(KeyboardInterrupt):
        skate.get(interrupter.interrupt.remote())
    assert skate.get(log.remote("alive")) == "alive"
    assert skate.get(Logger.remote().log.remote("alive")) > 0


def test_what_has_no_thread_runs_once_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    logger = Logger.options(num_cpus=2).remote()
    ref = logger.log.remote(1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="new thread"):
                skate.get(ref)
    skate.get(ref)
    assert LOG == [1]
    assert skate.available_resources()["CPU"] == 0


STARTED = threading.Event()
CANCELLED = threading.Event()


@skate.remote(max_retries=0)
def go_on_when_cancelled() -> None:
    LOG.append("runs")
    STARTED.set()
    CANCELLED.wait(30)
    skate.get(log.remote("in vain"))
    LOG.append("went on")


def test_a_task_that_another_thread_cancels_ends_at_its_next_call_of_skate() -> None:
    ref = go_on_when_cancelled.remote()

    def cancel() -> None:
        STARTED.wait(30)
        skate.cancel(ref)
        CANCELLED.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(TaskCancelledError):
        skate.get(ref)
    thread.join()
    assert "went on" not in LOG
