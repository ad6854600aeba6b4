"""GPUs are handed out by id; no GPU is needed to test that."""

from __future__ import annotations

import os
from typing import Any

import pytest
from helpers import Signal
from polling import wait_until

import skate
from skate.util.placement_group import placement_group
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy

pytestmark = pytest.mark.differs(ray="Ray's own, on a cluster that has GPUs")
VARIABLE = "CUDA_VISIBLE_DEVICES"


@skate.remote
def look() -> tuple[list[Any], str | None]:
    return skate.get_gpu_ids(), os.environ.get(VARIABLE)


@skate.remote(num_cpus=0)
def look_and_wait(signal: Any) -> list[Any]:
    ids = skate.get_gpu_ids()
    skate.get(signal.wait.remote())
    assert os.environ[VARIABLE] == ",".join(map(str, ids))
    return ids


@skate.remote
class Holder:
    def ids(self) -> list[Any]:
        assert os.environ.get(VARIABLE) == ",".join(map(str, skate.get_gpu_ids()))
        return skate.get_gpu_ids()


@pytest.fixture
def two(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    start(num_cpus=4, num_gpus=2)


@pytest.mark.usefixtures("two")
def test_tasks_get_different_gpus_and_see_no_other() -> None:
    signal = Signal.remote()
    refs = [look_and_wait.options(num_gpus=1).remote(signal) for _ in range(2)]
    skate.get(signal.wait_for_waiting.remote(2))
    signal.set.remote()
    assert sorted(skate.get(refs)) == [[0], [1]]
    assert skate.get(look.options(num_gpus=2).remote()) == ([0, 1], "0,1")


@pytest.mark.usefixtures("two")
def test_shares_are_packed_onto_one_gpu() -> None:
    signal = Signal.remote()
    half = look_and_wait.options(num_gpus=0.5)
    refs = [half.remote(signal) for _ in range(2)]
    skate.get(signal.wait_for_waiting.remote(2))
    # The other one is whole: a task of one GPU still fits.
    assert skate.get(look.options(num_gpus=1).remote()) == ([1], "1")
    signal.set.remote()
    assert skate.get(refs) == [[0], [0]]


@pytest.mark.usefixtures("two")
def test_shares_do_not_add_up_over_gpus() -> None:
    holders = [Holder.options(num_gpus=0.6).remote() for _ in range(2)]
    assert sorted(skate.get([h.ids.remote() for h in holders])) == [[0], [1]]
    assert skate.available_resources()["GPU"] == pytest.approx(0.8)
    waiting = look.options(num_gpus=0.5).remote()  # on each of them, 0.4 is free
    assert skate.wait([waiting], timeout=0.1)[0] == []
    skate.kill(holders.pop())
    assert skate.get(waiting, timeout=30)[0] in ([0], [1])


@pytest.mark.usefixtures("two")
def test_an_actor_keeps_its_gpu_for_life_and_tells_it() -> None:
    actor = Holder.options(num_gpus=1).remote()
    first = skate.get(actor.ids.remote())
    assert skate.get(actor.ids.remote()) == first
    other = Holder.options(num_gpus=1).remote()
    assert sorted([*first, *skate.get(other.ids.remote())]) == [0, 1]
    skate.kill(other)
    assert wait_until(lambda: skate.available_resources()["GPU"] == 1)
    assert skate.get(look.options(num_gpus=1).remote())[0] != first


@pytest.mark.usefixtures("two")
def test_the_runtime_context_tells_ids_as_strings() -> None:
    @skate.remote(num_gpus=1)
    def ids() -> Any:
        return skate.get_runtime_context().get_accelerator_ids()

    assert skate.get(ids.remote()) == {"GPU": ["0"]}
    assert skate.get_runtime_context().get_accelerator_ids() == {"GPU": []}
    assert skate.get_gpu_ids() == []


@pytest.mark.usefixtures("two")
def test_a_bundle_of_a_placement_group_has_gpus_of_its_own() -> None:
    group = placement_group([{"GPU": 1}, {"GPU": 1}])
    skate.get(group.ready())
    found = []
    for bundle in (0, 1, 1):
        strategy = PlacementGroupSchedulingStrategy(group, bundle)
        task = look.options(num_gpus=1, num_cpus=0, scheduling_strategy=strategy)
        found.append(skate.get(task.remote())[0])
    assert found == [[0], [1], [1]]


def test_ids_are_of_those_that_the_user_made_visible(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "2,GPU-3")
    start(num_cpus=2)
    assert skate.cluster_resources()["GPU"] == 2
    assert skate.get(look.options(num_gpus=1).remote()) == (["2"], "2")
    holders = [Holder.options(num_gpus=1).remote() for _ in range(2)]
    ids = skate.get([h.ids.remote() for h in holders])
    assert sorted(ids) == [["2"], ["GPU-3"]]
    # Without GPUs, the variable stays as it is.
    assert skate.get(look.remote()) == ([], "2,GPU-3")
    assert os.environ[VARIABLE] == "2,GPU-3"


@pytest.mark.usefixtures("two")
def test_the_variable_of_a_runtime_env_stays() -> None:
    env = {"env_vars": {VARIABLE: "7"}}
    assert skate.get(look.options(num_gpus=1, runtime_env=env).remote()) == ([0], "7")
    assert skate.get(look.remote()) == ([], None)


def test_more_than_the_user_made_visible_is_refused(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "2,3")
    with pytest.raises(ValueError, match="num_gpus=3, and CUDA_VISIBLE_DEVICES='2,3'"):
        start(num_gpus=3)


def test_fewer_than_there_are_may_be_handed_out(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "2,3")
    start(num_gpus=1)
    assert skate.get(look.options(num_gpus=1).remote()) == (["2"], "2")
