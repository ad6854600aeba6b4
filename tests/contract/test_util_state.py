from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import Counter, Signal, fail, identity, wait_for
from polling import wait_until

import skate
from skate.util import list_named_actors, placement_group, state

pytestmark = pytest.mark.usefixtures("engine")


LISTED = pytest.mark.differs(
    ray="refused by name: 'ray list' shows tasks, objects and workers of the cluster"
)


@pytest.mark.differs(ray="shows the actors of the whole cluster, other programs' too")
def test_actors_are_listed_with_their_state() -> None:
    named = Counter.options(name="shown").remote()
    other = Counter.remote()
    skate.get([named.add.remote(), other.add.remote()])
    (row,) = state.list_actors(filters=[("name", "=", "shown")])
    assert (row.state, row["class_name"]) == ("ALIVE", "Counter")
    assert state.get_actor(row.actor_id) is not None
    assert len(state.list_actors(limit=1)) == 1
    skate.kill(other)
    dead = [("state", "!=", "ALIVE")]
    assert wait_until(lambda: len(state.list_actors(filters=dead)) == 1)
    counts = state.summarize_actors()["cluster"]["summary"]["Counter"]["state_counts"]
    assert counts == {"ALIVE": 1, "DEAD": 1}
    assert state.get_actor("no such id") is None


def test_named_actors_are_listed() -> None:
    here = Counter.options(name="here").remote()
    there = Counter.options(name="there", namespace="elsewhere").remote()
    skate.get([here.add.remote(), there.add.remote()])
    assert list_named_actors() == ["here"]
    everywhere = list_named_actors(all_namespaces=True)
    assert {"namespace": "elsewhere", "name": "there"} in everywhere


@pytest.mark.differs(ray="refused by name: 'ray summary tasks' tells it")
def test_tasks_are_counted_by_function() -> None:
    skate.get([identity.remote(i) for i in range(3)])
    skate.wait([fail.remote(ValueError())])

    def counts() -> Any:
        rows = state.summarize_tasks()["cluster"]["summary"].values()
        found: dict[str, int] = {}
        for row in rows:
            for name, number in row["state_counts"].items():
                found[name] = found.get(name, 0) + number
        return found

    def are_counted() -> bool:
        now = counts()
        return now.get("FINISHED", 0) >= 3 and now.get("FAILED", 0) == 1

    assert wait_until(are_counted), counts()


def test_the_node_the_job_and_placement_groups_are_listed() -> None:
    context = skate.get_runtime_context()
    (node,) = state.list_nodes()
    assert node.node_id == context.get_node_id()
    assert state.get_node(node.node_id) is not None
    (job,) = state.list_jobs()
    assert state.get_job(job.job_id) is not None
    group = placement_group([{"CPU": 1}], name="some")
    (row,) = state.list_placement_groups(filters=[("name", "=", "some")])
    assert row.placement_group_id == group.id
    assert state.get_placement_group(group.id) is not None


@LISTED
def test_tasks_are_listed_with_their_state() -> None:
    signal = Signal.remote()
    running = wait_for.remote(signal)
    skate.get(signal.wait_for_waiting.remote(1))
    done = identity.remote(1)
    skate.wait([done])
    bad = fail.remote(ValueError())
    skate.wait([bad])
    waiting = identity.options(name="waits").remote(running)

    def states() -> dict[str, str]:
        rows = state.list_tasks(limit=1000)
        return {row.name: row.state for row in rows if row.type == "NORMAL_TASK"}

    assert wait_until(
        lambda: (
            states()
            == {
                "wait_for": "RUNNING",
                "identity": "FINISHED",
                "fail": "FAILED",
                "waits": "PENDING_ARGS_AVAIL",
            }
        )
    ), states()
    (row,) = state.list_tasks(filters=[("name", "=", "fail")])
    assert row.end_time_ms >= row.start_time_ms >= row.creation_time_ms > 0
    assert row.error_type == "TASK_EXECUTION_EXCEPTION"
    assert row.job_id == skate.get_runtime_context().get_job_id()
    assert state.get_task(row.task_id) == row
    assert state.get_task("0") is None
    calls = state.list_tasks(filters=[("type", "=", "ACTOR_TASK")])
    assert {"Signal.wait", "Signal.wait_for_waiting"} == {row.name for row in calls}
    (made,) = state.list_tasks(filters=[("type", "=", "ACTOR_CREATION_TASK")])
    assert made.actor_id == state.list_actors()[0].actor_id
    signal.set.remote()
    skate.get(waiting)


@LISTED
def test_each_attempt_of_a_task_is_listed() -> None:
    @skate.remote(retry_exceptions=True, max_retries=1)
    def unlucky() -> None:
        raise ValueError

    skate.wait([unlucky.remote()])
    unluckies = [("name", "=", "unlucky")]
    assert wait_until(
        lambda: (
            [
                (row.attempt_number, row.state)
                for row in state.list_tasks(filters=unluckies)
            ]
            == [(0, "FAILED"), (1, "FAILED")]
        )
    ), state.list_tasks(filters=unluckies)


@skate.remote
class Looking:
    """Makes more events than are kept of a process."""

    def early(self) -> None:
        pass

    def look(self, n: int) -> None:
        ref = skate.put(n)
        for _ in range(n):
            skate.get(ref)

    def fail(self, n: int) -> None:
        self.look(n)
        raise ValueError

    def wait(self, n: int, signal: Any) -> None:
        self.look(n)
        skate.get(signal.wait.remote())


@LISTED
def test_calls_are_listed_as_they_are_however_much_they_do() -> None:
    many = 40_000
    signal, looking = Signal.remote(), Looking.remote()
    skate.get(looking.early.remote())
    skate.wait([looking.fail.remote(many)])

    def states() -> dict[str, str]:
        return {row.name: row.state for row in state.list_tasks(limit=1000)}

    assert wait_until(lambda: states()["Looking.fail"] == "FAILED"), states()
    # What is forgotten by now may be left out.
    assert states().get("Looking.early", "FINISHED") == "FINISHED"
    waits = looking.wait.remote(many, signal)
    skate.get(signal.wait_for_waiting.remote(1))
    assert states()["Looking.wait"] == "RUNNING"
    signal.set.remote()
    skate.get(waits)


@LISTED
def test_objects_are_listed_with_their_size() -> None:
    signal = Signal.remote()
    large = skate.put(bytes(100_000))
    pending = wait_for.remote(signal)
    skate.get(signal.wait_for_waiting.remote(1))
    (row,) = state.list_objects(filters=[("object_id", "=", large.hex())])
    assert row.object_size >= 100_000
    assert (row.task_status, row.reference_type) == ("FINISHED", "LOCAL_REFERENCE")
    assert row.pid == os.getpid()
    (row,) = state.get_objects(pending.hex())
    assert row.task_status in ("SUBMITTED_TO_WORKER", "RUNNING")
    kinds = {row.reference_type for row in state.list_objects()}
    assert kinds == {"LOCAL_REFERENCE", "ACTOR_HANDLE"}
    summary = state.summarize_objects()["cluster"]
    assert summary["total_objects"] >= 3
    assert summary["total_size_mb"] >= 0.1
    signal.set.remote()
    skate.get(pending)


@LISTED
def test_workers_are_listed() -> None:
    counter = Counter.remote()
    skate.get(counter.add.remote())
    (driver,) = state.list_workers(filters=[("worker_type", "=", "DRIVER")])
    assert driver.pid == os.getpid()
    assert driver.is_alive
    assert state.get_worker(driver.worker_id) is not None
    if state.list_actors()[0].pid != os.getpid():
        workers = state.list_workers(filters=[("worker_type", "!=", "DRIVER")])
        assert state.list_actors()[0].pid in [row.pid for row in workers]


def test_wrong_filters_are_refused() -> None:
    with pytest.raises(ValueError, match="'~'"):
        state.list_nodes(filters=[("state", "~", "x")])
    with pytest.raises(ValueError, match="no 'colour'"):
        state.list_nodes(filters=[("colour", "=", "x")])
    with pytest.raises(ValueError, match="limit"):
        state.list_nodes(limit=0)


def test_no_more_rows_are_made_than_the_limit_asks_for() -> None:
    made = []

    def rows() -> Iterator[dict[str, int]]:
        for number in range(10):
            made.append(number)
            yield {"number": number}

    found = state._lists(rows)(limit=2, filters=[("number", "!=", 0)])
    assert [row["number"] for row in found] == [1, 2]
    assert made == [0, 1, 2]
