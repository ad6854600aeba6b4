from __future__ import annotations

from typing import Any

import pytest
from helpers import Counter, Signal, identity, wait_for
from polling import wait_until

import skate
from skate.exceptions import (
    ActorDiedError,
    ResourceError,
    TaskPlacementGroupRemoved,
    WorkerCrashedError,
)
from skate.util import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from skate.util.placement_group import PlacementGroup
from skate.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)


@pytest.fixture(autouse=True)
def session(start: Any) -> None:
    start(num_cpus=2, resources={"token": 4})


def in_group(thing: Any, group: PlacementGroup, index: int = -1, **options: Any) -> Any:
    where = PlacementGroupSchedulingStrategy(group, index)
    return thing.options(scheduling_strategy=where, **options)


def free(name: str) -> float:
    return skate.available_resources()[name]


def test_a_group_takes_its_resources_out_of_the_session() -> None:
    group = placement_group([{"CPU": 1, "token": 1}, {"token": 2}], name="some")
    assert group.wait(60)
    assert skate.get(group.ready()) == group
    assert wait_until(lambda: (free("CPU"), free("token")) == (1, 1))
    there = skate.cluster_resources()
    assert (there["CPU"], there["token"]) == (2, 4)
    assert group.bundle_specs == [{"CPU": 1.0, "token": 1.0}, {"token": 2.0}]
    assert group.bundle_count == 2
    remove_placement_group(group)
    remove_placement_group(group)
    assert wait_until(lambda: free("token") == 4)
    assert free("CPU") == 2
    assert placement_group_table(group)["state"] == "REMOVED"
    assert not group.wait(0.1)


def test_tasks_run_in_the_group_and_know_it() -> None:
    @skate.remote
    def where() -> tuple[Any, dict[str, float], Any]:
        context = skate.get_runtime_context()
        return (
            get_current_placement_group(),
            context.get_assigned_resources(),
            context.get_placement_group_id(),
        )

    group = placement_group([{"CPU": 1}, {"CPU": 1, "token": 1}])
    expected = group, {"CPU": 1.0, "token": 1.0}, group.id
    assert skate.get(in_group(where, group, 1, resources={"token": 1}).remote()) == (
        expected
    )
    assert skate.get(in_group(where, group).remote()) == (group, {"CPU": 1.0}, group.id)
    assert skate.get(in_group(where, group, num_cpus=0).remote()) == (
        group,
        {},
        group.id,
    )
    remove_placement_group(group)
    assert skate.get(where.remote()) == (None, {"CPU": 1.0}, None)
    assert get_current_placement_group() is None


def test_a_bundle_limits_how_many_of_its_tasks_run_at_once() -> None:
    group = placement_group([{"token": 1}, {"token": 2}])
    signal = Signal.remote()
    limited = in_group(wait_for, group, 1, resources={"token": 1})
    refs = [limited.remote(signal, i) for i in range(3)]
    assert skate.get(signal.wait_for_waiting.remote(2)) == 2
    assert skate.wait(refs, timeout=0.05) == ([], refs)
    assert skate.get(signal.waiting.remote()) == 2
    assert wait_until(lambda: free("token") == 1)
    other = wait_for.options(resources={"token": 1}).remote(signal, "outside")
    assert skate.get(signal.wait_for_waiting.remote(3)) == 3
    signal.set.remote()
    assert skate.get([*refs, other]) == [0, 1, 2, "outside"]


def test_a_group_waits_until_its_resources_are_free() -> None:
    signal = Signal.remote()
    holder = wait_for.options(resources={"token": 3}).remote(signal, 1)
    skate.get(signal.wait_for_waiting.remote(1))
    group = placement_group([{"token": 2}])
    assert not group.wait(0.05)
    assert placement_group_table(group)["state"] == "PENDING"
    task = in_group(identity, group, num_cpus=0).remote(5)
    assert skate.wait([task], timeout=0.05)[0] == []
    signal.set.remote()
    assert skate.get([holder, task]) == [1, 5]
    assert group.wait(60)
    row = placement_group_table(group)
    assert row["state"] == "CREATED"
    assert row["bundles"] == {0: {"token": 2.0}}
    assert placement_group_table()[group.id] == row


def test_a_blocked_task_of_a_group_lends_its_cpu_to_its_children() -> None:
    group = placement_group([{"CPU": 1}])

    @skate.remote
    def parent(group: PlacementGroup) -> int:
        child = in_group(identity, group).remote(4)
        found: int = skate.get(child)
        return found

    assert skate.get(in_group(parent, group).remote(group)) == 4


@pytest.mark.differs(ray="its actors end a moment after it, and may answer until then")
def test_actors_live_in_a_group() -> None:
    group = placement_group([{"CPU": 1, "token": 1}])
    actor = in_group(Counter, group, 0, num_cpus=1, resources={"token": 1}).remote()
    assert skate.get(actor.add.remote()) == 1
    late = in_group(Counter, group, 0, resources={"token": 1}).remote()
    assert skate.wait([late.get.remote()], timeout=0.05)[0] == []
    remove_placement_group(group)
    for gone in (actor, late):
        with pytest.raises(ActorDiedError):
            skate.get(gone.get.remote())
    assert wait_until(lambda: free("token") == 4)


def test_tasks_of_a_removed_group_fail() -> None:
    group = placement_group([{"token": 1}])
    assert group.wait(60)
    signal = Signal.remote()
    limited = in_group(wait_for, group, resources={"token": 1}, max_retries=0)
    running = limited.remote(signal)
    skate.get(signal.wait_for_waiting.remote(1))
    waiting = limited.remote(signal)
    # On Ray it would wait for ever if the group were gone before it had been asked for.
    assert wait_until(lambda: skate.summary().functions["wait_for"].queued == 1)
    remove_placement_group(group)
    with pytest.raises(TaskPlacementGroupRemoved):
        skate.get(waiting)
    with pytest.raises(WorkerCrashedError):
        skate.get(running)
    signal.set.remote()
    assert wait_until(lambda: free("token") == 4)


def test_a_task_that_removes_its_own_group_ends() -> None:
    @skate.remote(max_retries=0)
    def remove_own(signal: Any) -> None:
        own = get_current_placement_group()
        assert own is not None
        remove_placement_group(own)
        skate.get(signal.wait.remote())

    group = placement_group([{"token": 1}])
    assert group.wait(60)
    signal = Signal.remote()
    options = {"num_cpus": 0, "resources": {"token": 1}}
    with pytest.raises(WorkerCrashedError):
        skate.get(in_group(remove_own, group, **options).remote(signal), timeout=60)
    assert wait_until(lambda: free("token") == 4)


@pytest.mark.differs(ray="waits for such a group for ever: cancel it")
def test_a_task_of_a_removed_group_is_not_tried_again() -> None:
    group = placement_group([{"token": 1}])
    assert group.wait(60)
    signal = Signal.remote()
    limited = in_group(wait_for, group, resources={"token": 1}, max_retries=3)
    running = limited.remote(signal)
    skate.get(signal.wait_for_waiting.remote(1))
    remove_placement_group(group)
    with pytest.raises(TaskPlacementGroupRemoved):
        skate.get(running)
    signal.set.remote()
    assert wait_until(lambda: free("token") == 4)


@pytest.mark.differs(ray="is refused at the call, if the same process removed it")
def test_what_is_to_run_in_a_removed_group_fails() -> None:
    group = placement_group([{"token": 1}])
    remove_placement_group(group)
    late = in_group(identity, group, num_cpus=0).remote(1)
    with pytest.raises(TaskPlacementGroupRemoved):
        skate.get(late)
    actor = in_group(Counter, group).remote()
    with pytest.raises(
        ActorDiedError, match="is dead: its placement group was removed"
    ):
        skate.get(actor.get.remote())


@pytest.mark.differs(ray="the group is the shared Ray's, and outlives the session")
def test_a_group_ends_with_its_session(start: Any) -> None:
    group = placement_group([{"token": 1}])
    assert group.wait(60)
    skate.shutdown()
    start(num_cpus=2, resources={"token": 4})
    late = in_group(identity, group, num_cpus=0).remote(1)
    actor = in_group(Counter, group).remote()
    with pytest.raises(TaskPlacementGroupRemoved):
        skate.get(late)
    with pytest.raises(ActorDiedError, match="placement group"):
        skate.get(actor.get.remote())
    assert skate.get(identity.remote(2)) == 2


@pytest.mark.differs(ray="a task that waits for such a group waits for ever: cancel it")
def test_a_group_that_waits_may_be_removed() -> None:
    signal = Signal.remote()
    holder = wait_for.options(resources={"token": 4}).remote(signal)
    skate.get(signal.wait_for_waiting.remote(1))
    group = placement_group([{"token": 2}])
    task = in_group(identity, group, num_cpus=0).remote(5)
    remove_placement_group(group)
    with pytest.raises(TaskPlacementGroupRemoved):
        skate.get(task)
    signal.set.remote()
    skate.get(holder)
    assert wait_until(lambda: free("token") == 4)


def test_a_wait_that_is_given_up_leaves_no_task() -> None:
    signal = Signal.remote()
    holder = wait_for.options(resources={"token": 4}).remote(signal)
    skate.get(signal.wait_for_waiting.remote(1))
    group = placement_group([{"token": 2}])
    for _ in range(3):
        assert not group.wait(0.01)
    assert wait_until(lambda: skate.summary().functions["_ready"].queued == 0)
    signal.set.remote()
    skate.get(holder)
    assert group.wait(60)
    remove_placement_group(group)
    assert wait_until(lambda: free("token") == 4)


@pytest.mark.parametrize(
    ("bundles", "strategy", "reason"),
    [
        ([{"CPU": 1}, {"CPU": 2}], "PACK", "CPU: 3"),
        ([{"gizmo": 1}], None, "gizmo: 1"),
        ([{"CPU": 1}, {"CPU": 1}], "STRICT_SPREAD", "2 bundles"),
    ],
    ids=["much", "unknown", "spread"],
)
def test_what_can_never_be_had_says_why(
    bundles: Any, strategy: str | None, reason: str
) -> None:
    with pytest.warns(RuntimeWarning, match=reason):
        group = placement_group(bundles, strategy)
    assert not group.wait(0.05)
    stats = placement_group_table(group)["stats"]
    assert stats["scheduling_state"] == "INFEASIBLE"
    assert reason in stats["reason"]
    remove_placement_group(group)


def test_a_named_group_is_found_again() -> None:
    group = placement_group([{"token": 1}], name="mine")
    assert get_placement_group("mine") == group
    assert skate.get(skate.remote(get_placement_group).remote("mine")) == group
    remove_placement_group(group)
    for name in ("mine", "nobody", ""):
        with pytest.raises(ValueError, match="no placement group"):
            get_placement_group(name)


def test_a_task_that_fits_no_bundle_is_refused() -> None:
    group = placement_group([{"CPU": 1}, {"token": 2}])
    for options in ({"num_cpus": 2}, {"num_cpus": 1, "resources": {"token": 1}}):
        with pytest.raises(ResourceError, match="no bundle"):
            in_group(identity, group, **options).remote(1)
    with pytest.raises(ResourceError, match="no bundle"):
        in_group(identity, group, 1).remote(1)


def test_wrong_arguments_are_refused() -> None:
    for bundles in ([], {}, [{}], [{"CPU": 0}], ["CPU"], [{"CPU": -1}]):
        with pytest.raises(ValueError, match=r"bundle"):
            placement_group(bundles)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="strategy"):
        placement_group([{"CPU": 1}], "pack")
    with pytest.raises(ValueError, match="lifetime"):
        placement_group([{"CPU": 1}], lifetime="long")
    group = placement_group([{"CPU": 1}])
    for index in (1, -2):
        with pytest.raises(ValueError, match="1 bundles"):
            PlacementGroupSchedulingStrategy(group, index)
    with pytest.raises(ValueError, match="capture"):
        PlacementGroupSchedulingStrategy(
            group, placement_group_capture_child_tasks=True
        )
    with pytest.raises(ValueError, match="scheduling_strategy"):
        identity.options(scheduling_strategy="NEAR")


def test_strategies_for_nodes_have_one_to_choose() -> None:
    here = skate.get_runtime_context().get_node_id()
    for strategy in (
        "SPREAD",
        PlacementGroupSchedulingStrategy(None),
        NodeAffinitySchedulingStrategy(here, soft=False),
        NodeAffinitySchedulingStrategy("ab" * 28, soft=True),
        NodeLabelSchedulingStrategy({"gpu": DoesNotExist()}, soft={"zone": In("eu")}),
    ):
        task = identity.options(scheduling_strategy=strategy)
        assert skate.get(task.remote(1)) == 1
    for strategy in (
        NodeAffinitySchedulingStrategy("ab" * 28, soft=False),
        NodeLabelSchedulingStrategy({"gpu": Exists()}),
    ):
        with pytest.raises(ValueError, match="skate runs on"):
            identity.options(scheduling_strategy=strategy)
    with pytest.raises(ValueError, match="needs hard or soft"):
        NodeLabelSchedulingStrategy({})
    with pytest.raises(ValueError, match="strings"):
        In()
    with pytest.raises(ValueError, match="gpu"):
        NodeLabelSchedulingStrategy({"gpu": "yes"})
