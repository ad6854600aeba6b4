"""Processes of the embedded engine killed for real, at moments nobody chose."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from processes import (
    alive,
    children,
    descendants,
    state_of,
    worker_pids,
    zygote_and_workers,
)
from workload import Counter, block, die, echo, nested

import skate
from skate.exceptions import ActorDiedError, EngineError, WorkerCrashedError

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")


@pytest.fixture
def session() -> Iterator[None]:
    with skate.init("embedded", num_cpus=2):
        yield


def wait_until(condition, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


class Killer(threading.Thread):
    """Kills a random worker, some ten a second, until it is stopped."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.kills = 0
        self._random = random.Random(seed)
        self._stop_it = threading.Event()

    def run(self) -> None:
        while not self._stop_it.wait(self._random.uniform(0.0, 0.15)):
            pids = worker_pids(os.getpid())
            if not pids:
                continue
            try:
                os.kill(self._random.choice(pids), signal.SIGKILL)
                self.kills += 1
            except ProcessLookupError:
                pass

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop_it.set()
        self.join()


@pytest.mark.parametrize("seed", range(3))
def test_killing_workers_at_random_loses_and_falsifies_nothing(
    session: None, seed: int
) -> None:
    skate.get([nested.remote(0), echo.remote(0), block.remote(0)])
    baseline = skate_statistics()
    with Killer(seed) as killer:
        end = time.monotonic() + 4
        rounds = 0
        while time.monotonic() < end:
            n = 40
            small = [echo.remote(i) for i in range(n)]
            large = [block.remote(i) for i in range(n)]
            deep = [nested.remote(i) for i in range(8)]
            assert [x for x, _ in skate.get(small, timeout=60)] == list(range(n))
            for i, array in enumerate(skate.get(large, timeout=60)):
                assert (array == i).all()
            for i, ref in enumerate(deep):
                # The owner of a nested task may die; then the outer task runs again.
                assert skate.get(ref, timeout=60) == 2 * i
            rounds += 1
    assert killer.kills > 10
    assert rounds > 0
    del small, large, deep, array, ref
    wait_until(lambda: skate_statistics()["objects"] <= baseline["objects"])
    wait_until(
        lambda: skate_statistics()["store_bytes"] <= baseline["store_bytes"] + 100_000
    )


def skate_statistics() -> dict[str, int]:
    from skate import _runtime

    return _runtime.current().statistics()


def test_a_task_that_kills_its_worker_fails_by_name(session: None) -> None:
    with pytest.raises(WorkerCrashedError, match="SIGKILL"):
        skate.get(die.remote(), timeout=30)
    assert skate.get(echo.remote(1), timeout=30)[0] == 1


def test_an_actor_killed_from_outside_fails_its_calls_by_name(session: None) -> None:
    actor = Counter.remote()
    pid = skate.get(actor.pid.remote(), timeout=30)
    waiting = actor.sleep.remote()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ActorDiedError, match="SIGKILL"):
        skate.get(waiting, timeout=30)
    with pytest.raises(ActorDiedError):
        skate.get(actor.add.remote(), timeout=30)


def test_results_outlive_the_worker_that_made_them(session: None) -> None:
    ref = block.remote(7)
    skate.wait([ref], timeout=30)
    for pid in worker_pids(os.getpid()):
        os.kill(pid, signal.SIGKILL)
    assert (skate.get(ref, timeout=30) == 7).all()


def test_a_killed_zygote_is_replaced_and_costs_nothing(session: None) -> None:
    assert skate.get(echo.remote(1), timeout=30)[0] == 1
    (zygote,) = zygote_and_workers(os.getpid())[0]
    os.kill(zygote, signal.SIGKILL)
    actor = Counter.remote()  # needs a new process
    assert skate.get(actor.add.remote(), timeout=30) == 1


def test_another_zygote_imports_nothing_from_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pickle", "selectors", "socket", "signal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('of the program')")
    monkeypatch.chdir(tmp_path)
    with skate.init("embedded", num_cpus=2):
        assert skate.get(echo.remote(1), timeout=30)[0] == 1
        (zygote,) = zygote_and_workers(os.getpid())[0]
        os.kill(zygote, signal.SIGKILL)
        actor = Counter.remote()  # needs a new process
        assert skate.get(actor.add.remote(), timeout=30) == 1


FORKS = """
import os, time

if os.fork() == 0:
    time.sleep(300)
    os._exit(0)
"""


def test_a_killed_zygote_is_replaced_although_its_preloaded_module_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "preloaded_that_forks.py").write_text(FORKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    with skate.init("embedded", num_cpus=1, preload=["preloaded_that_forks"]):
        assert skate.get(echo.remote(1), timeout=30)[0] == 1
        (zygote,) = zygote_and_workers(os.getpid())[0]
        os.kill(zygote, signal.SIGKILL)
        actor = Counter.remote()  # needs a new process
        assert skate.get(actor.add.remote(), timeout=30) == 1


def test_an_idle_session_outlives_any_number_of_killed_zygotes(session: None) -> None:
    killed: list[int] = []

    def kill_one_that_waits_for_orders() -> bool:
        for pid in zygote_and_workers(os.getpid())[0]:
            if pid not in killed and state_of(pid) == "S":
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return True
        return False

    for _ in range(8):
        wait_until(kill_one_that_waits_for_orders)
    actor = Counter.remote()  # needs a new process
    assert skate.get(actor.add.remote(), timeout=30) == 1


def test_workers_of_a_second_zygote_may_open_as_many_files_as_of_the_first() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 100, hard))
    try:
        with skate.init("embedded", num_cpus=2):
            first = Counter.remote()
            assert skate.get(first.max_files.remote(), timeout=30) == hard - 100
            (zygote,) = zygote_and_workers(os.getpid())[0]
            os.kill(zygote, signal.SIGKILL)
            wait_until(lambda: not alive(zygote))
            second = Counter.remote()
            assert skate.get(second.max_files.remote(), timeout=30) == hard - 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_killed_supervisor_ends_the_session_by_name(session: None) -> None:
    actor = Counter.remote()
    waiting = actor.sleep.remote()
    skate.get(echo.remote(1), timeout=30)
    (supervisor,) = children(os.getpid())
    os.kill(supervisor, signal.SIGKILL)
    with pytest.raises(EngineError, match="session has ended"):
        skate.get(waiting, timeout=30)
    skate.shutdown()
    skate.init("embedded", num_cpus=1)
    assert skate.get(echo.remote(2), timeout=30)[0] == 2


PROGRAM = """
import os, subprocess, sys, time
import skate

@skate.remote
def busy(folder):
    subprocess.Popen(["sleep", "60"])
    open(os.path.join(folder, str(os.getpid())), "w").close()
    time.sleep(60)

@skate.remote
class Actor:
    def busy(self, folder):
        open(os.path.join(folder, str(os.getpid())), "w").close()
        time.sleep(60)

skate.init("embedded", num_cpus=2)
keep = skate.put(b"x" * 10_000_000)
actor = Actor.remote()
refs = [busy.remote(sys.argv[1]), actor.busy.remote(sys.argv[1])]
while len(os.listdir(sys.argv[1])) < 2:
    time.sleep(0.01)
print("ready", flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "signal_number"),
    [
        ("skate.get(refs)", signal.SIGKILL),
        ("skate.get(refs)", signal.SIGINT),
        ("skate.get(refs)", signal.SIGTERM),
        ("", None),
        ("raise ValueError('driver')", None),
        ("os._exit(3)", None),
    ],
    ids=["SIGKILL", "SIGINT", "SIGTERM", "return", "exception", "_exit"],
)
def test_nothing_outlives_the_driver(
    tmp_path: object, end: str, signal_number: int | None
) -> None:
    folder = str(tmp_path)
    driver = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(end=end), folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == b"ready\n"
    session = descendants(driver.pid)
    if signal_number is not None:
        assert len(session) >= 5  # supervisor, zygote, two workers, sleep
        driver.send_signal(signal_number)
    driver.wait(timeout=30)
    driver.stdout.close()
    wait_until(lambda: not any(map(alive, session)), timeout=5)


def test_a_worker_leaves_no_process_behind(session: None) -> None:
    @skate.remote(max_retries=0)
    def spawn_and_die(path: str) -> None:
        child = subprocess.Popen(["sleep", "60"])
        with open(path, "w") as file:
            file.write(str(child.pid))
        os.kill(os.getpid(), signal.SIGKILL)

    import tempfile

    with tempfile.NamedTemporaryFile("r") as file:
        with pytest.raises(WorkerCrashedError):
            skate.get(spawn_and_die.remote(file.name), timeout=30)
        child = int(file.read())
        wait_until(lambda: not alive(child))


def test_a_fork_in_a_task_harms_nothing(session: None) -> None:
    @skate.remote
    def fork_inside(array: np.ndarray) -> tuple[float, str]:
        readable, writable = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                skate.put(1)
                text = b"no error"
            except skate.exceptions.SkateError as error:
                text = b"refused " + str(float(array.sum())).encode()
                del error
            del array  # its exit, too, must release nothing
            os.write(writable, text)
            os._exit(0)
        os.close(writable)
        text = os.read(readable, 100)
        os.close(readable)
        os.waitpid(pid, 0)
        return float(array.sum()), text.decode()

    ref = skate.put(np.ones(1_000_000))
    assert skate.get(fork_inside.remote(ref), timeout=30) == (
        1_000_000.0,
        "refused 1000000.0",
    )
    assert skate.get(ref).sum() == 1_000_000.0


class Submitter:
    def prepare(self, n_bytes: int) -> None:
        large = bytes(n_bytes)

        @skate.remote
        def with_large_code() -> int:
            return len(large)

        self.task = with_large_code

    def submit(self) -> None:
        self.result = self.task.remote()


@pytest.mark.filterwarnings("ignore::skate.exceptions.PerformanceAdvice")
def test_a_worker_that_reads_the_code_of_a_task_outlives_the_tasks_caller() -> None:
    with skate.init("embedded", num_cpus=1):
        pid = skate.remote(os.getpid)
        worker = skate.get(pid.remote())
        for _ in range(2):
            caller = skate.remote(num_cpus=0)(Submitter).remote()
            skate.get(caller.prepare.remote(200 << 20))
            skate.get(caller.submit.remote())
            time.sleep(0.02)  # the code is being read
            skate.kill(caller)
            assert skate.get(pid.remote()) == worker
