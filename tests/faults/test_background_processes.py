"""What workers had started and left to run ends with them, and not before."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from polling import wait_until
from processes import children, zygote_and_workers

import skate


@skate.remote(num_cpus=0)
class Keeper:
    def start(self) -> int:
        """A process whose parent has ended: a child of the supervisor."""
        command = "sleep 300 >/dev/null 2>&1 & echo $!"
        found = subprocess.run(["sh", "-c", command], capture_output=True, check=True)
        return int(found.stdout)


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@skate.remote(num_cpus=0)
class Daemonizer:
    def start(self) -> int:
        """A process that leads a session of its own, and whose parent has ended."""
        inner = "sleep 300 >/dev/null 2>&1 & echo $!"
        command = ["setsid", "--wait", "sh", "-c", inner]
        found = subprocess.run(command, capture_output=True, check=True)
        return int(found.stdout)


@skate.remote(num_cpus=0)
class Grandparent:
    def start(self) -> int:
        """A process whose parents live, one of which leads a session of its own."""
        inner = "sleep 300 >/dev/null & echo $!; wait"
        command = ["sh", "-c", f"setsid sh -c '{inner}'; true"]
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.child.stdout is not None
        return int(self.child.stdout.readline())


@pytest.mark.parametrize(
    "starter",
    [Keeper, Daemonizer, Grandparent],
    ids=["a background process", "a daemon", "a grandchild"],
)
def test_what_an_actor_started_ends_with_it_alone(starter: Any) -> None:
    with skate.init(num_cpus=1):
        first, second = starter.remote(), starter.remote()
        of_first, of_second = skate.get([first.start.remote(), second.start.remote()])
        assert runs(of_first)
        assert runs(of_second)
        skate.kill(first)
        assert wait_until(lambda: not runs(of_first))
        assert runs(of_second)
        skate.kill(second)
        assert wait_until(lambda: not runs(of_second))


@contextlib.contextmanager
def no_descriptors_left(pid: int) -> Iterator[None]:
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_an_end_is_handled_where_the_supervisor_can_open_no_file() -> None:
    with skate.init(num_cpus=1):
        keeper = Keeper.remote()
        kept = skate.get(keeper.start.remote())
        (supervisor,) = children(os.getpid())
        with no_descriptors_left(supervisor):
            skate.kill(keeper)
            assert wait_until(lambda: not runs(kept))
        assert skate.get(answer.remote(1), timeout=30) == 1


def test_a_daemon_lives_on_when_the_zygote_is_killed() -> None:
    with skate.init(num_cpus=1):
        actor = Daemonizer.remote()
        daemon = skate.get(actor.start.remote())
        (zygote,) = zygote_and_workers(os.getpid())[0]
        os.kill(zygote, signal.SIGKILL)
        # From another one.
        another = Daemonizer.remote()
        assert runs(skate.get(another.start.remote(), timeout=30))
        assert runs(daemon)


@skate.remote(max_retries=0)
def leave_a_printer() -> None:
    subprocess.Popen(["yes", "from a child"])
    os._exit(3)


@skate.remote
def answer(x: int) -> int:
    return x


def test_a_child_that_prints_without_end_holds_up_nobody() -> None:
    with skate.init(num_cpus=2, log_to_driver=False):
        for i in range(3):
            with pytest.raises(skate.exceptions.WorkerCrashedError):
                skate.get(leave_a_printer.remote(), timeout=30)
            assert skate.get(answer.remote(i), timeout=30) == i


# As under sudo: the child is another user's, and the session may not end it.
NOT_OURS = """
import os, subprocess
import skate

@skate.remote(max_retries=0)
def leave_a_child():
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    program = ["sh", "-c", "echo $$; exec sleep 100 >/dev/null 2>&1"]
    child = subprocess.Popen([*other, *program], stdout=subprocess.PIPE)
    print(int(child.stdout.readline()), flush=True)  # another user's by now
    os._exit(3)

@skate.remote
def echo(x):
    return x

skate.init("embedded", num_cpus=2)
try:
    skate.get(leave_a_child.remote(), timeout=20)
except skate.exceptions.WorkerCrashedError:
    assert skate.get([echo.remote(i) for i in range(8)], timeout=20) == [*range(8)]
    skate.shutdown()
    print("went on")
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root can make another user's process, without sudo",
)
def test_a_child_that_may_not_be_ended_does_not_end_the_session() -> None:
    less = ["setpriv", "--bounding-set", "-kill", "--inh-caps", "-kill"]
    done = subprocess.run(
        [*less, sys.executable, "-c", NOT_OURS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    printed = re.findall(r"\b(\d+)$", done.stdout + done.stderr, re.MULTILINE)
    for pid in map(int, printed):
        os.kill(pid, signal.SIGKILL)
    assert printed, done.stderr
    assert "went on" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr, done.stderr


def test_what_a_living_worker_started_and_left_is_reaped() -> None:
    @skate.remote(num_cpus=0)
    class Shell:
        def start(self, count: int) -> list[int]:
            command = ["sh", "-c", "sleep 0.05 >/dev/null & echo $!"]
            return [int(subprocess.check_output(command)) for _ in range(count)]

    with skate.init("embedded", num_cpus=1):
        shell = Shell.remote()
        for _ in range(3):
            pids = skate.get(shell.start.remote(10))
            assert wait_until(lambda pids=pids: not any(map(runs, pids)))


def test_what_has_ended_by_itself_is_no_longer_there() -> None:
    """Each led a session of its own, as a daemon does."""

    @skate.remote(max_calls=1)
    def start_one() -> int:
        with subprocess.Popen(["true"], start_new_session=True) as ended:
            pass
        left = subprocess.Popen(["true"], start_new_session=True)
        return left.pid if ended.returncode == 0 else 0

    with skate.init("embedded", num_cpus=1):
        pids = [skate.get(start_one.remote()) for _ in range(4)]
        assert wait_until(lambda: not any(map(runs, pids)), 20)
