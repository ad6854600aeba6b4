"""Workers of tasks with resources of their own end, but not under what they started."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from polling import wait_until

import skate

pytest.importorskip("skate._core", reason="skate's C++ core is not built")


@pytest.fixture
def session() -> Iterator[None]:
    resources = {f"r{number}": 1.0 for number in range(8)}
    with skate.init("embedded", num_cpus=2, num_gpus=1, resources=resources):
        yield


@skate.remote(max_retries=0)
def go_on_after(path: str) -> int:
    assert wait_until(lambda: Path(path).exists())
    return 7


@skate.remote
def hand_out(path: str) -> tuple[skate.ObjectRef[int], int]:
    return go_on_after.remote(path), os.getpid()


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_worker_of_a_gpu_task_ends_after_the_tasks_that_it_has_started(
    session: None, tmp_path: Path
) -> None:
    path = tmp_path / "go"
    child, parent = skate.get(hand_out.options(num_gpus=1).remote(str(path)))
    # Another has the GPU: that the first task is done is known.
    skate.get(hand_out.options(num_gpus=1).remote(str(tmp_path)))
    path.touch()
    assert skate.get(child, timeout=10) == 7
    assert wait_until(lambda: not runs(parent))


def test_idle_workers_over_the_limit_end_after_the_tasks_that_they_have_started(
    session: None, tmp_path: Path
) -> None:
    path = tmp_path / "go"
    started = [
        hand_out.options(num_cpus=0, resources={f"r{number}": 1}).remote(str(path))
        for number in range(8)
    ]
    children, parents = zip(*skate.get(started), strict=True)
    path.touch()
    assert skate.get(list(children), timeout=20) == [7] * 8
    assert wait_until(lambda: sum(map(runs, set(parents))) <= 4)


@skate.remote(num_cpus=2, max_calls=1, max_retries=0)
def pid_of_its_only_call() -> int:
    return os.getpid()


def test_no_leased_task_is_given_to_a_worker_that_max_calls_ends(session: None) -> None:
    refs = [pid_of_its_only_call.remote() for _ in range(20)]
    assert len(set(skate.get(refs, timeout=60))) == 20


@skate.remote(num_cpus=2, max_calls=1, max_retries=0)
def hand_out_once(path: str) -> tuple[skate.ObjectRef[int], int]:
    return go_on_after.options(num_cpus=0).remote(path), os.getpid()


def test_worker_that_max_calls_ends_waits_for_the_tasks_that_it_has_started(
    session: None, tmp_path: Path
) -> None:
    path = tmp_path / "go"
    child, parent = skate.get(hand_out_once.remote(str(path)))
    assert skate.get(pid_of_its_only_call.remote(), timeout=20) != parent
    path.touch()
    assert skate.get(child, timeout=20) == 7
    assert wait_until(lambda: not runs(parent))


@skate.remote(num_gpus=1, max_retries=0)
def replace_stdout(by: object) -> int:
    if by == "closed":
        sys.stdout.close()
    else:
        sys.stdout = by  # type: ignore[assignment]
    return os.getpid()


@pytest.mark.parametrize("by", ["closed", None, 7])
def test_worker_ends_though_its_task_has_replaced_stdout(
    session: None, by: object
) -> None:
    worker = skate.get(replace_stdout.remote(by), timeout=20)
    assert wait_until(lambda: not runs(worker))


@skate.remote
class Answers:
    def answer(self) -> int:
        return 7


@skate.remote(max_retries=0)
def make_actor() -> tuple[skate.ActorHandle[Answers], int]:
    actor = Answers.options(num_cpus=0).remote()
    skate.get(actor.answer.remote())
    return actor, os.getpid()


@skate.remote(max_retries=0)
def nothing() -> None:
    return None


@skate.remote(max_retries=0)
def own_pid() -> int:
    return os.getpid()


def test_worker_of_the_pool_that_max_calls_ends_takes_no_other_task() -> None:
    with skate.init("embedded", num_cpus=1):
        actor, parent = skate.get(make_actor.options(max_calls=1).remote())
        # There is another in its place, though it waits for its actor's end.
        pids = skate.get([own_pid.remote() for _ in range(20)], timeout=20)
        assert parent not in pids
        assert runs(parent)
        assert skate.get(actor.answer.remote(), timeout=20) == 7
        del actor
        assert wait_until(lambda: not runs(parent))


@pytest.mark.parametrize(
    "options",
    [{"num_gpus": 1}, {"max_calls": 1}, {"max_calls": 1, "num_cpus": 2}],
    ids=["gpu", "pool", "lease"],
)
def test_worker_ends_after_the_actors_that_it_has_started(
    session: None, options: dict[str, int]
) -> None:
    actor, parent = skate.get(make_actor.options(**options).remote())
    # That the first task is done is known: others have what it had.
    skate.get([nothing.options(**options).remote() for _ in range(4)], timeout=20)
    assert skate.get(actor.answer.remote(), timeout=20) == 7
    del actor

    def is_gone() -> bool:  # one of the pool ends after a task
        skate.get(nothing.remote(), timeout=20)
        return not runs(parent)

    assert wait_until(is_gone)
