from __future__ import annotations

from typing import Any

import pytest
from helpers import Counter, fail, identity
from polling import wait_until

import skate
from skate.util import list_named_actors, placement_group, state

pytestmark = pytest.mark.usefixtures("engine")


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


def test_wrong_filters_are_refused() -> None:
    with pytest.raises(ValueError, match="'~'"):
        state.list_nodes(filters=[("state", "~", "x")])
    with pytest.raises(ValueError, match="no 'colour'"):
        state.list_nodes(filters=[("colour", "=", "x")])
    with pytest.raises(ValueError, match="limit"):
        state.list_nodes(limit=0)
