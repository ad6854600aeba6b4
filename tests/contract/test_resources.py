from __future__ import annotations

from typing import Any

import pytest
from helpers import Counter, Signal, identity, wait_for
from polling import wait_until

import skate
from skate.exceptions import ResourceError
from skate.util import placement_group, remove_placement_group


@pytest.fixture(autouse=True)
def session(start: Any) -> None:
    start(num_cpus=2, num_gpus=1, resources={"token": 4})


def test_the_session_tells_what_it_has() -> None:
    assert skate.cluster_resources() == {"CPU": 2.0, "GPU": 1.0, "token": 4.0}
    assert skate.available_resources() == skate.cluster_resources()


def test_nodes_describes_this_machine() -> None:
    (node,) = skate.nodes()
    assert node["Alive"]
    assert node["Resources"] == skate.cluster_resources()


def test_a_custom_resource_limits_how_many_tasks_run_at_once() -> None:
    signal = Signal.remote()
    limited = wait_for.options(resources={"token": 2})
    refs = [limited.remote(signal, i) for i in range(3)]
    assert skate.get(signal.wait_for_waiting.remote(2)) == 2
    assert skate.wait(refs, timeout=0.05) == ([], refs)
    assert skate.get(signal.waiting.remote()) == 2
    assert skate.available_resources()["token"] == 0
    signal.set.remote()
    assert skate.get(refs) == [0, 1, 2]
    assert wait_until(lambda: skate.available_resources()["token"] == 4)


def test_tasks_that_need_one_cpu_and_all_of_them_take_turns() -> None:
    # The workers that look for more to do hold the CPUs that the second task waits for.
    for i in range(100):
        assert skate.get(identity.remote(i)) == i
        assert skate.get(identity.options(num_cpus=2).remote(i)) == i


def test_a_task_lends_its_cpus_while_it_waits_whatever_its_worker_ran_before() -> None:
    @skate.remote
    def parent(x: int) -> int:
        return skate.get(identity.remote(x))

    for i in range(20):
        assert skate.get(identity.options(num_cpus=0).remote(i)) == i
        assert skate.get(parent.options(num_cpus=2).remote(i), timeout=60) == i


def test_resources_may_be_fractions() -> None:
    signal = Signal.remote()
    large = wait_for.options(resources={"token": 0.9})
    refs = [large.remote(signal) for _ in range(5)]
    assert skate.get(signal.wait_for_waiting.remote(4)) == 4
    assert skate.wait(refs, timeout=0.05)[0] == []
    assert skate.get(signal.waiting.remote()) == 4
    signal.set.remote()
    skate.get(refs)


def test_what_fractions_took_and_gave_back_leaves_exactly_what_was_there() -> None:
    for amounts in ((0.1, 0.2, 0.3, 0.7), (0.7, 0.1, 0.3), (1 / 3, 1 / 3, 1 / 3)):
        refs = [
            identity.options(num_cpus=0, resources={"token": n}).remote(n)
            for n in amounts
        ]
        assert skate.get(refs) == list(amounts)
    assert wait_until(
        lambda: skate.available_resources() == skate.cluster_resources(), 5
    ), skate.available_resources()


def test_bundles_of_fractions_add_up_to_all_there_is() -> None:
    group = placement_group([{"token": 0.1}] * 40)
    assert group.wait(10)
    remove_placement_group(group)


def test_other_tasks_pass_those_that_lack_a_resource() -> None:
    signal = Signal.remote()
    holder = wait_for.options(resources={"token": 4}).remote(signal)
    skate.get(signal.wait_for_waiting.remote(1))
    waiting = identity.options(resources={"token": 2}).remote(1)
    assert skate.get(identity.remote(2)) == 2
    signal.set.remote()
    assert skate.get([waiting, holder]) == [1, None]


def test_an_actor_holds_its_resources_while_it_lives() -> None:
    counter = Counter.options(num_gpus=0.5, resources={"token": 2}).remote()
    skate.get(counter.add.remote())
    held = skate.available_resources()
    assert (held["GPU"], held["token"], held["CPU"]) == (0.5, 2.0, 2.0)
    skate.kill(counter)
    assert wait_until(lambda: skate.available_resources()["token"] == 4)


def test_an_async_actor_holds_its_cpus_while_it_has_nothing_to_do() -> None:
    signal = Signal.options(num_cpus=1).remote()
    skate.get(signal.waiting.remote())
    assert skate.available_resources()["CPU"] == 1
    blocked = [wait_for.options(num_cpus=1).remote(signal) for _ in range(2)]
    assert skate.get(signal.wait_for_waiting.remote(2)) == 2  # they lend theirs
    signal.set.remote()
    skate.get(blocked)


def test_a_failed_constructor_gives_its_resources_back() -> None:
    class Unborn:
        def __init__(self) -> None:
            raise ValueError

        def call(self) -> None: ...

    actor = skate.remote(resources={"token": 4})(Unborn).remote()
    skate.wait([actor.call.remote()])
    assert wait_until(lambda: skate.available_resources()["token"] == 4)


def test_a_failed_task_gives_its_resources_back() -> None:
    bad = skate.remote(resources={"token": 4})(lambda: 1 / 0).remote()
    skate.wait([bad])
    assert wait_until(lambda: skate.available_resources()["token"] == 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_cpus": 3}, ["CPU", "3", "2"]),
        ({"num_gpus": 2}, ["GPU", "2", "1"]),
        ({"resources": {"tokn": 1}}, ["tokn", "1", "token"]),
        ({"resources": {"token": 4.5}}, ["token", "4.5", "4"]),
    ],
    ids=["cpu", "gpu", "unknown", "custom"],
)
def test_what_can_never_be_had_is_refused_and_the_error_says_what_exists(
    options: dict[str, Any], words: list[str]
) -> None:
    for thing, name in ((identity, "identity"), (Counter, "Counter")):
        with pytest.raises(ResourceError, match=f"{name} asks for") as caught:
            thing.options(**options).remote(1)
        assert all(word in str(caught.value) for word in [*words, "skate.init"])
        assert isinstance(caught.value, ValueError)
