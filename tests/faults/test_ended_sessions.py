"""The supervisor or the zygote killed, at moments nobody chose."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from polling import wait_until
from processes import alive, children, descendants, zygote_and_workers
from workload import Counter, echo

import skate
from skate.engine.embedded import boot, wire
from skate.exceptions import EngineDiedError

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")


@pytest.fixture
def session() -> Iterator[None]:
    with skate.init("embedded", num_cpus=2, object_store_memory=64 << 20):
        yield


def supervisor() -> int:
    (pid,) = children(os.getpid())
    return pid


class InThread(threading.Thread):
    """Runs a call that waits, and keeps what it raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.entered = threading.Event()
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        self.entered.set()
        try:
            self._call()
        except BaseException as error:
            self.error = error


def never() -> skate.ObjectRef[None]:
    """A ref that gets no value; its actor lives as long as its call runs."""
    return Counter.remote().sleep.remote()


def iterate(ref: skate.ObjectRef[Any]) -> None:
    for _ in skate.as_completed([ref]):
        pass


async def await_it(ref: skate.ObjectRef[Any]) -> None:
    await ref


WAITS: dict[str, Callable[[skate.ObjectRef[Any]], object]] = {
    "get": skate.get,
    "get with a timeout": lambda ref: skate.get(ref, timeout=3600),
    "wait": lambda ref: skate.wait([ref]),
    "as_completed": iterate,
    "await": lambda ref: asyncio.run(await_it(ref)),
    "future": lambda ref: ref.future().result(),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_killed_supervisor_ends_every_wait(session: None, name: str) -> None:
    ref = never()
    skate.get(echo.remote(1))
    waiting = InThread(lambda: WAITS[name](ref))
    waiting.entered.wait()
    os.kill(supervisor(), signal.SIGKILL)
    waiting.join(timeout=30)
    assert isinstance(waiting.error, EngineDiedError)
    with pytest.raises(EngineDiedError, match=r"skate\.init\(\) starts a new session"):
        skate.get(ref)


def test_waits_of_many_threads_end_with_the_supervisor(session: None) -> None:
    ref = never()
    waiting = [InThread(lambda: skate.get(ref)) for _ in range(8)]
    for thread in waiting:
        thread.entered.wait()
    os.kill(supervisor(), signal.SIGKILL)
    for thread in waiting:
        thread.join(timeout=30)
        assert isinstance(thread.error, EngineDiedError)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Counter.remote(),
        lambda: skate.get_actor("nobody"),
        skate.available_resources,
    ],
    ids=["actor", "get_actor", "available_resources"],
)
def test_a_question_that_waits_for_the_supervisor_ends_with_it(
    session: None, call: Callable[[], object]
) -> None:
    pid = supervisor()
    os.kill(pid, signal.SIGSTOP)
    waiting = InThread(call)
    waiting.entered.wait()
    os.kill(pid, signal.SIGKILL)
    waiting.join(timeout=30)
    assert isinstance(waiting.error, EngineDiedError)


def test_a_supervisor_whose_driver_has_gone_at_its_start_says_nothing() -> None:
    """As when init is interrupted just after it has started one."""
    mine, theirs = wire.socket_pair()
    with theirs:
        program = subprocess.Popen(
            [sys.executable, boot.__file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
            text=True,
        )
    mine.close()
    with program:
        assert program.communicate(timeout=60)[1] == ""
        assert program.returncode == 0


ENDS_WHILE_A_THREAD_WAITS = """
import threading
import skate

@skate.remote
def wait_for_good():
    threading.Event().wait()

skate.init("embedded", num_cpus=1)
ref = wait_for_good.remote()
thread = threading.Thread(target=lambda: skate.get(ref), daemon=True)
thread.start()
thread.join(0.2)  # it waits by then; if not, it has nothing to say either
"""


def test_a_program_says_nothing_of_daemon_threads_that_wait_when_it_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS_WHILE_A_THREAD_WAITS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""


BECOMES_ANOTHER_PROGRAM = """
import os, sys, time
import skate
skate.init("embedded", num_cpus=1)
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
(supervisor,) = (
    int(pid)
    for pid in open(f"/proc/self/task/{os.getpid()}/children").read().split()
    if int(pid) != child
)
print(supervisor, child, flush=True)
os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)"])
"""


def test_a_session_ends_with_a_driver_that_becomes_another_program_after_a_fork() -> (
    None
):
    with subprocess.Popen(
        [sys.executable, "-c", BECOMES_ANOTHER_PROGRAM],
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        supervisor, child = map(int, program.stdout.readline().split())
        try:
            assert wait_until(lambda: not alive(supervisor), 10)
            assert alive(child)
            assert program.poll() is None
        finally:
            os.kill(child, signal.SIGKILL)
            program.kill()


@skate.remote
def spawn() -> int:
    """A child that would outlive its worker, in a session of its own."""
    return subprocess.Popen(["sleep", "600"], start_new_session=True).pid


def test_nothing_outlives_a_killed_supervisor(session: None) -> None:
    child = skate.get(spawn.remote())
    actor = Counter.remote()
    skate.get(actor.add.remote())
    keep = skate.put(np.ones(1_000_000))
    everything = [*descendants(os.getpid()), child]
    os.kill(supervisor(), signal.SIGKILL)
    assert wait_until(lambda: not any(map(alive, everything)))
    del keep


def test_init_works_after_the_supervisor_was_killed(session: None) -> None:
    ref = never()
    os.kill(supervisor(), signal.SIGKILL)
    with pytest.raises(EngineDiedError):
        skate.get(ref)
    skate.init("embedded", num_cpus=1)  # without a shutdown()
    assert skate.get(echo.remote(2), timeout=60)[0] == 2


@pytest.mark.parametrize("seed", range(3))
def test_a_zygote_killed_at_any_moment_costs_nothing(session: None, seed: int) -> None:
    moments = random.Random(seed)
    pause = threading.Event()
    assert skate.get(echo.remote(0), timeout=60)[0] == 0
    for i in range(6):
        actors = [Counter.remote() for _ in range(3)]
        tasks = [echo.remote(n) for n in range(4)]
        pause.wait(moments.uniform(0.0, 0.02))
        for zygote in zygote_and_workers(os.getpid())[0]:
            os.kill(zygote, signal.SIGKILL)
        late = Counter.remote()  # ordered while there may be no zygote
        calls = [actor.add.remote() for actor in (*actors, late)]
        assert skate.get(calls, timeout=60) == [1] * 4, i
        assert [n for n, _ in skate.get(tasks, timeout=60)] == list(range(4))


@skate.remote
def hang_in_native_code() -> None:
    import ctypes

    # Holds the GIL and heeds no Python signal handler, as a hung extension does.
    ctypes.PyDLL(None).usleep(60_000_000)


def test_a_task_that_hangs_in_native_code_holds_up_nobody_else(session: None) -> None:
    hung = hang_in_native_code.remote()
    with pytest.raises(skate.exceptions.GetTimeoutError):
        skate.get(hung, timeout=0.2)
    assert skate.wait([hung], timeout=0) == ([], [hung])
    start = time.monotonic()
    assert skate.get(echo.remote(1), timeout=60)[0] == 1
    assert time.monotonic() - start < 50  # it did not wait for the hung one


BROKEN = """
import os
if open("/proc/self/comm").read().strip() == "skate-zygote":
    def break_it():
        raise ImportError("libbroken.so: not found")
    import skate.engine.embedded.worker as worker
    worker._start_afresh = {how}
"""


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("break_it", "with status 1 .*ImportError: libbroken.so: not found"),
        ("lambda: os._exit(7)", "with status 7 .*standard error"),
        ("lambda: os.kill(os.getpid(), 11)", "by signal 11 .*standard error"),
    ],
)
def test_workers_that_cannot_start_end_the_session_and_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, told: str
) -> None:
    (tmp_path / "broken_preload.py").write_text(BROKEN.format(how=how))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SKATE_PRELOAD", "broken_preload")
    with skate.init("embedded", num_cpus=1):
        with pytest.raises(EngineDiedError, match=r"(?s)workers in a row.*sys\.path"):
            skate.get(echo.remote(1), timeout=60)
        with pytest.raises(EngineDiedError, match=f"(?s){told}"):
            skate.get(echo.remote(1), timeout=60)


def test_a_future_that_is_cancelled_after_its_session_is_told_of() -> None:
    skate.init("embedded", num_cpus=1)
    entered, go_on = threading.Event(), threading.Event()

    def hold_up(future: Future[int]) -> None:
        entered.set()
        go_on.wait(30)

    first = echo.remote(1).future()
    first.add_done_callback(hold_up)
    last = never().future()
    assert entered.wait(20)
    skate.shutdown()
    try:
        assert last.cancel()
        done, _ = futures.wait([last], timeout=20)
        assert done == {last}
    finally:
        go_on.set()


WITH_AN_ACTOR = """
import skate

@skate.remote
class Actor:
    def answer(self):
        return 1

with skate.init("embedded", num_cpus=2):
    actor = Actor.remote()
    print(skate.get(actor.answer.remote()))
"""


@pytest.mark.parametrize("flags", [["-X", "dev"], ["-W", "error"]])
def test_a_session_that_ends_leaves_nothing_open(flags: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *flags, "-c", WITH_AN_ACTOR],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("1\n", "")
