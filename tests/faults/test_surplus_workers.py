"""Workers that were needed while tasks waited for others end when no longer needed."""

from __future__ import annotations

import _thread
import os
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest
from polling import wait_until

import skate

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

PATIENCE_S = 60.0
CPUS = 2

kept: list[object] = []  # in each worker


@pytest.fixture
def session() -> Iterator[None]:
    with skate.init("embedded", num_cpus=CPUS):
        yield


@skate.remote
def nest(depth: int) -> int:
    return 0 if depth == 0 else 1 + skate.get(nest.remote(depth - 1))


@skate.remote(max_retries=0)
def put_and_nest(depth: int) -> skate.ObjectRef[int]:
    ref = skate.put(os.getpid())
    kept.append(ref)  # else it would be given away
    skate.get(nest.remote(depth))
    return ref


def start_thread() -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def start_thread_that_threading_does_not_know() -> None:
    _thread.start_new_thread(threading.Event().wait, ())


def leave_in_background() -> None:
    """A process whose parent has ended: the supervisor's child."""
    subprocess.run(["sh", "-c", "sleep 600 >/dev/null 2>&1 &"], check=True)


def leave_daemon() -> None:
    """The same, which leads a session of its own."""
    subprocess.run(["setsid", "sh", "-c", "sleep 600 >/dev/null 2>&1 &"], check=True)


@skate.remote(max_retries=0)
def start_and_nest(start: Callable[[], None], depth: int) -> int:
    start()
    skate.get(nest.remote(depth))
    return os.getpid()


def workers() -> int:
    return skate.summary().workers


def runs(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def test_surplus_workers_end_and_later_tasks_run(session: None) -> None:
    assert skate.get(nest.remote(8)) == 8
    assert workers() > CPUS
    assert wait_until(lambda: workers() <= CPUS, PATIENCE_S)
    assert skate.get([nest.remote(1) for _ in range(20)]) == [1] * 20
    assert skate.get(nest.remote(8)) == 8


def test_a_worker_that_has_values_stays(session: None) -> None:
    refs = skate.get([put_and_nest.remote(4) for _ in range(2 * CPUS)])
    assert wait_until(lambda: workers() <= len(refs), PATIENCE_S)
    assert all(map(runs, skate.get(refs)))


@pytest.mark.parametrize(
    "start",
    [
        start_thread,
        start_thread_that_threading_does_not_know,
        leave_in_background,
        leave_daemon,
    ],
)
def test_a_worker_stays_for_what_the_program_has_started_there(
    session: None, start: Callable[[], None]
) -> None:
    pids = skate.get([start_and_nest.remote(start, 4) for _ in range(2 * CPUS)])
    assert workers() > len(set(pids))
    assert wait_until(lambda: workers() <= len(set(pids)), PATIENCE_S)
    assert all(map(runs, pids))
