from __future__ import annotations

from typing import Any

import pytest
from helpers import Signal

import skate


@pytest.fixture(autouse=True)
def session(start: Any) -> None:
    start(num_cpus=2, num_gpus=1, resources={"token": 2}, namespace="here")


def describe() -> dict[str, Any]:
    context = skate.get_runtime_context()
    return {**context.get(), "resources": context.get_assigned_resources()}


@skate.remote
class Describer:
    def describe(self) -> dict[str, Any]:
        return describe()


@skate.remote
class AsyncDescriber:
    async def describe(self) -> dict[str, Any]:
        return describe()


def test_the_driver_has_a_job_and_a_node() -> None:
    context = skate.get_runtime_context()
    assert context.get_node_id() == skate.nodes()[0]["NodeID"]
    assert context.namespace == "here"
    assert context.get_job_id() in context.get_session_name()
    assert context.get_task_id() is None
    assert context.get_actor_id() is None
    assert context.get_assigned_resources() == {}
    assert context.get_accelerator_ids() == {"GPU": []}
    assert context.get_node_labels() == {}
    assert context.gcs_address == ""


def test_tasks_are_of_the_drivers_job_and_node() -> None:
    here, there = describe(), skate.get(skate.remote(describe).remote())
    for name in ("job_id", "node_id", "namespace"):
        assert here[name] == there[name]
    assert there["task_id"]
    assert "actor_id" not in there


@pytest.mark.parametrize(
    ("options", "resources"),
    [
        ({}, {"CPU": 1.0}),
        ({"num_cpus": 0.5}, {"CPU": 0.5}),
        ({"num_cpus": 2, "resources": {"token": 1}}, {"CPU": 2.0, "token": 1.0}),
        ({"num_cpus": 0}, {}),
    ],
    ids=["default", "half", "token", "none"],
)
def test_a_task_knows_what_it_holds(options: Any, resources: dict[str, float]) -> None:
    task = skate.remote(describe)
    if options:
        task = task.options(**options)
    assert skate.get(task.remote())["resources"] == resources


@pytest.mark.parametrize("actor_class", [Describer, AsyncDescriber])
def test_an_actor_knows_what_it_holds(actor_class: Any) -> None:
    plain = actor_class.remote()
    found = skate.get(plain.describe.remote())
    assert found["actor_id"]
    assert found["resources"] == {}
    holder = actor_class.options(num_cpus=1, resources={"token": 0.5}).remote()
    held = skate.get(holder.describe.remote())["resources"]
    assert held == {"CPU": 1.0, "token": 0.5}


def test_what_a_blocked_task_holds_is_still_its_own() -> None:
    signal = Signal.remote()

    @skate.remote(num_cpus=2)
    def wait() -> dict[str, float]:
        skate.get(signal.wait.remote())
        return skate.get_runtime_context().get_assigned_resources()

    waiting = wait.remote()
    signal.set.remote()
    assert skate.get(waiting) == {"CPU": 2.0}


def test_an_actor_knows_its_name_and_has_a_handle_of_itself() -> None:
    @skate.remote
    class Self:
        def look(self) -> Any:
            context = skate.get_runtime_context()
            return context.get_actor_name(), context.current_actor

        def call(self) -> str:
            return "called"

    named, nameless = Self.options(name="me").remote(), Self.remote()
    name, handle = skate.get(named.look.remote())
    assert (name, handle) == ("me", named)
    assert skate.get(handle.call.remote()) == "called"
    assert skate.get(nameless.look.remote())[0] == ""
    context = skate.get_runtime_context()
    assert context.get_actor_name() is None
    with pytest.raises(RuntimeError, match="in an actor"):
        context.current_actor  # noqa: B018
