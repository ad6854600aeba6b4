"""What a program, a container or a machine does around skate."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import name_of
from workload import Counter, echo, nested

import skate
from skate.exceptions import TaskCancelledError, WorkerCrashedError

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

MIB = 1 << 20


@pytest.fixture
def session() -> Iterator[None]:
    with skate.init("embedded", num_cpus=2):
        yield


def run(program: str, *prefix: str, cgroup: list[Path] | None = None) -> str:
    """What a program prints that is started by ``prefix``, perhaps in cgroups."""

    def enter() -> None:
        for folder in cgroup or []:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    done = subprocess.run(
        [*prefix, sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=enter,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("paths", [None, "/one:/two"])
def test_tasks_have_the_python_path_of_the_driver(
    monkeypatch: pytest.MonkeyPatch, paths: str | None
) -> None:
    if paths is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", paths)

    @skate.remote
    def look() -> str | None:
        return os.environ.get("PYTHONPATH")

    with skate.init("embedded", num_cpus=1):
        assert skate.get(look.remote(), timeout=60) == paths


# Signals ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [signal.SIGALRM, signal.SIGCHLD, signal.SIGUSR1, signal.SIGTERM]
)
def test_a_users_signal_handler_runs_and_the_wait_goes_on(
    session: None, number: signal.Signals
) -> None:
    calls: list[int] = []
    before = signal.signal(number, lambda n, _: calls.append(n))
    handler = signal.getsignal(number)
    try:
        actor = Counter.remote()
        skate.get(actor.add.remote())
        hung = actor.sleep.remote()
        for _ in range(3):
            timer = threading.Timer(0.05, os.kill, (os.getpid(), number))
            timer.start()
            assert skate.wait([hung], timeout=0.5) == ([], [hung])
            timer.join()
        assert skate.get(echo.remote(5), timeout=60)[0] == 5
        assert len(calls) >= 3
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


class Stop(Exception):
    pass


def test_what_a_signal_handler_raises_leaves_the_wait(session: None) -> None:
    def stop(*_: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    try:
        actor = Counter.remote()
        hung = actor.sleep.remote()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Stop):
            skate.get(hung)
        assert skate.get(echo.remote(5), timeout=60)[0] == 5
    finally:
        signal.signal(signal.SIGALRM, before)


@skate.remote
def signals_here() -> tuple[int, int]:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return len(blocked), subprocess.run(["false"], check=False).returncode


@skate.remote
def wait_for_cancel() -> None:
    threading.Event().wait(60)


def test_workers_inherit_no_blocked_and_no_ignored_signals() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    handler = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with skate.init("embedded", num_cpus=1):
            assert skate.get(signals_here.remote(), timeout=30) == (0, 1)
            endless = wait_for_cancel.remote()
            skate.cancel(endless)
            with pytest.raises(TaskCancelledError):
                skate.get(endless, timeout=30)
    finally:
        signal.signal(signal.SIGCHLD, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_user_who_reaps_every_child_does_not_disturb(session: None) -> None:
    def reap(*_: object) -> None:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    before = signal.signal(signal.SIGCHLD, reap)
    try:
        subprocess.Popen(["true"]).wait()
        assert [n for n, _ in skate.get([echo.remote(i) for i in range(20)])] == list(
            range(20)
        )
        skate.shutdown()  # its supervisor is reaped by the handler
    finally:
        signal.signal(signal.SIGCHLD, before)


# Forks ------------------------------------------------------------------------------


def square(x: int) -> int:
    return x * x


@skate.remote
def use_a_pool(array: np.ndarray) -> list[Any]:
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:  # as a DataLoader or a vector environment does
        squares = pool.map(square, range(10))
    listed = subprocess.run(["echo", "hello"], capture_output=True, text=True)
    pid = os.fork()
    if pid == 0:
        sys.exit(int(array[0]))  # all the way out, through exit handlers
    _, status = os.waitpid(pid, 0)
    return [squares, listed.stdout, os.WEXITSTATUS(status), float(array.sum())]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("where", ["worker", "driver"])
def test_forks_in_user_code_harm_nothing(session: None, where: str) -> None:
    ref = skate.put(np.ones(1_000_000))
    expected = [[x * x for x in range(10)], "hello\n", 1, 1e6]
    if where == "worker":
        assert skate.get(use_a_pool.remote(ref), timeout=60) == expected
    else:
        view = skate.get(ref)
        context = multiprocessing.get_context("fork")
        child = context.Process(target=lambda: os._exit(int(view.sum() != 1e6)))
        child.start()
        child.join()
        assert child.exitcode == 0
        child.close()
    assert skate.get(ref).sum() == 1e6
    assert skate.get(nested.remote(3), timeout=60) == 6


# How a worker may end ----------------------------------------------------------------


@skate.remote(max_retries=0)
def end(how: str) -> None:
    if how == "exit":
        os._exit(7)
    if how == "segfault":
        import ctypes

        ctypes.string_at(0)
    os.abort()


@pytest.mark.parametrize(
    ("how", "said"),
    [("exit", "status 7"), ("segfault", "SIGSEGV"), ("abort", "SIGABRT")],
)
def test_a_worker_that_ends_is_named_by_how(session: None, how: str, said: str) -> None:
    with pytest.raises(WorkerCrashedError, match=said):
        skate.get(end.remote(how), timeout=60)
    assert skate.get(echo.remote(1), timeout=60)[0] == 1


def test_a_stopped_worker_does_not_hold_up_messages_to_others(session: None) -> None:
    stopped, other = Counter.remote(), Counter.remote()
    pid = skate.get(stopped.pid.remote())
    skate.get(other.add.remote())
    os.kill(pid, signal.SIGSTOP)
    try:
        waiting = [
            stopped.add.remote() for _ in range(2000)
        ]  # more than its ring holds
        assert (
            skate.get([other.add.remote() for _ in range(100)], timeout=60)[-1] == 101
        )
        assert skate.get(echo.remote(1), timeout=60)[0] == 1
    finally:
        os.kill(pid, signal.SIGCONT)
    assert skate.get(waiting, timeout=60) == list(range(1, 2001))


# Few cores, many of everything ------------------------------------------------------


def test_one_core_is_enough() -> None:
    program = """
        import skate

        @skate.remote
        def fib(n):
            if n < 2:
                return n
            return sum(skate.get([fib.remote(n - 1), fib.remote(n - 2)]))

        @skate.remote
        class Counter:
            n = 0
            def add(self):
                self.n += 1
                return self.n

        session = skate.init("embedded")
        actors = [Counter.remote() for _ in range(8)]
        print(session.num_cpus, skate.get(fib.remote(6)))
        print(skate.get([a.add.remote() for _ in range(5) for a in actors])[-1])
    """
    assert run(program, "taskset", "-c", "0") == "1 8\n5\n"


def test_more_actors_than_cores_take_turns(session: None) -> None:
    actors = [Counter.remote() for _ in range(24)]
    for n in (1, 2):
        assert skate.get([actor.add.remote() for actor in actors]) == [n] * 24


def test_thousands_of_open_refs(session: None) -> None:
    refs = [skate.put(i) for i in range(20_000)]
    results = [echo.remote(i) for i in range(5_000)]
    assert skate.get(refs) == list(range(20_000))
    assert [n for n, _ in skate.get(results)] == list(range(5_000))
    arrays = skate.get([skate.put(np.full(1000, i)) for i in range(20_000)])
    assert all(int(a[0]) == i for i, a in enumerate(arrays))
    assert len(skate.wait(refs, num_returns=20_000)[0]) == 20_000


# Limits of the machine --------------------------------------------------------------


@pytest.fixture
def cgroup() -> Iterator[Any]:
    """Makes a cgroup with a limit, below this process's own."""
    made: list[Path] = []

    def make(controller: str, **files: str) -> Path:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                mount = Path("/sys/fs/cgroup", controllers)
                folder = mount / path.lstrip("/") / f"skate-test-{os.getpid()}"
                break
        else:
            pytest.skip("there are no version 1 cgroups here to make one in")
        try:
            folder.mkdir()
            made.append(folder)
            for name, value in files.items():
                (folder / f"{controller}.{name}").write_text(value)
        except OSError as error:
            pytest.skip(f"cgroups cannot be made here: {error}")
        return folder

    yield make
    for folder in made:
        folder.rmdir()


def test_a_cpu_quota_is_respected(cgroup: Any) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores to take one away")
    folder = cgroup("cpu", cfs_quota_us="100000", cfs_period_us="100000")
    program = """
        import skate
        print(skate.init("embedded").num_cpus, skate.get(skate.put(1)))
    """
    assert run(program, cgroup=[folder]) == "1 1\n"


def test_a_memory_limit_is_respected_and_survived(cgroup: Any) -> None:
    folder = cgroup("memory", limit_in_bytes=str(400 * MIB))
    program = """
        import numpy as np
        import skate

        @skate.remote(max_retries=1)
        def hog():
            return len(bytes(bytearray(b"x") * (1 << 30)))

        @skate.remote
        def modest():
            return 1

        skate.init("embedded", num_cpus=2)
        from skate import _runtime
        limit = _runtime.current().node.store_limit
        print(100 << 20 < limit < 130 << 20)
        try:
            skate.get(hog.remote())
        except skate.exceptions.WorkerCrashedError as error:
            print("SIGKILL" in str(error))
        print(skate.get(modest.remote()))
    """
    assert run(program, cgroup=[folder]) == "True\nTrue\n1\n"


def test_the_memory_monitor_ends_the_newest_task_and_names_it(cgroup: Any) -> None:
    folder = cgroup("memory", limit_in_bytes=str(1000 * MIB))
    program = """
        import os, threading
        os.environ["SKATE_MEMORY_MONITOR"] = "0.6"
        import skate
        from skate.exceptions import OutOfMemoryError, WorkerCrashedError

        @skate.remote(max_retries=0)
        def old():
            threading.Event().wait(2)
            return "old"

        @skate.remote(max_retries=1)
        def hog():
            kept = bytearray(os.urandom(1)) * (700 << 20)
            threading.Event().wait(60)

        @skate.remote
        class Actor:
            def ready(self):
                return "actor"

        skate.init("embedded", num_cpus=2)
        actor = Actor.remote()
        first = old.remote()
        try:
            skate.get(hog.remote())
        except OutOfMemoryError as error:
            text = str(error)
            size = int(text.split(" MiB")[0].rpartition(" ")[2])
            print("task hog was ended" in text, 300 < size < 1000)
            print(isinstance(error, (WorkerCrashedError, MemoryError)))
        print(skate.get(first), skate.get(actor.ready.remote()))
    """
    assert run(program, cgroup=[folder]) == "True True\nTrue\nold actor\n"


def test_a_session_goes_on_whose_standard_error_nobody_reads() -> None:
    program = """
        import threading
        import skate

        @skate.remote(max_retries=0)
        def hog():
            threading.Event().wait(60)

        with skate.init("embedded", num_cpus=1, log_to_driver=False):
            for _ in range(2):  # the supervisor has something to say of each
                try:
                    skate.get(hog.remote(), timeout=20)
                except skate.exceptions.OutOfMemoryError:
                    print("ended")
    """
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "SKATE_MEMORY_MONITOR": "0.0001",
            },
            stdout=subprocess.PIPE,
            stderr=writer,
            text=True,
            timeout=100,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.stdout == "ended\nended\n"


# Clocks -----------------------------------------------------------------------------


def test_no_clock_that_jumps_is_used() -> None:
    """Setting the time of a machine cannot be tried in a test."""
    root = Path(skate.__file__).parent
    core = root.parent / "core"
    jumping = re.compile(
        r"\btime\.time\(|datetime\.now|system_clock|CLOCK_REALTIME|gettimeofday"
    )
    sources = [*(root / "engine").rglob("*.py"), *root.glob("*.py"), *core.rglob("*pp")]
    assert not [str(path) for path in sources if jumping.search(path.read_text())]


def test_a_time_namespace_that_is_days_ahead_changes_nothing() -> None:
    ahead = ["unshare", "--time", "--fork", "--monotonic", "864000"]
    if shutil.which("unshare") is None or subprocess.run([*ahead, "true"]).returncode:
        pytest.skip("this system lets nobody make a time namespace")
    program = """
        import time
        import skate

        @skate.remote
        def add(x, y):
            return x + y

        print(time.monotonic() > 864000, skate.get(add.remote(1, 2), timeout=60))
    """
    assert run(program, *ahead) == "True 3\n"


def test_processes_can_be_told_apart_by_name(session: None) -> None:
    actor = Counter.remote()
    assert name_of(skate.get(actor.pid.remote())) == "skate-worker"
