"""Options that are of a subclass of str, int or float mean what they say.

The members of an enum are, and NumPy's numbers. No process but the driver may know the
class.
"""

from __future__ import annotations

import os
from enum import Enum, IntEnum
from typing import Any

import numpy as np
import pytest
from helpers import identity

import skate
from skate.collective import create_group
from skate.util import placement_group, remove_placement_group
from skate.util.placement_group import get_placement_group
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy


class Name(str, Enum):
    TOKEN = "token"
    CPU = "CPU"
    SPREAD = "SPREAD"
    DETACHED = "detached"


class Text(str):
    def __str__(self) -> str:
        return "something else"


class Number(IntEnum):
    ZERO = 0
    ONE = 1


@pytest.fixture(autouse=True)
def session(start: Any) -> None:
    start(
        num_cpus=Number.ONE,
        resources={Name.TOKEN: np.float64(4)},
        namespace=Name.TOKEN,
        runtime_env={Text("env_vars"): {Text("SKATE_SUBCLASS"): Name.TOKEN}},
    )


@skate.remote
def variable() -> str | None:
    return os.environ.get("SKATE_SUBCLASS")


@skate.remote(concurrency_groups={Text("io"): Number.ONE})
class Actor:
    @skate.method(concurrency_group=Text("io"), num_returns=Number.ONE)
    def ping(self) -> str:
        return "pong"


@pytest.mark.differs(ray="the shared Ray has its environment already")
def test_those_of_the_session() -> None:
    assert skate.cluster_resources()["token"] == 4
    assert skate.get(variable.remote(), timeout=60) == "token"


def test_those_of_a_task() -> None:
    @skate.remote(
        num_cpus=np.float64(0.5),
        resources={Name.TOKEN: Number.ONE},
        max_calls=Number.ONE,
        max_retries=Number.ONE,
        num_returns=Number.ONE,
        name=Text("named"),
        scheduling_strategy=Name.SPREAD,
        runtime_env={"env_vars": {Text("SKATE_SUBCLASS"): Text("own")}},
    )
    def task() -> tuple[dict[str, float], str | None]:
        held = skate.get_runtime_context().get_assigned_resources()
        return held, os.environ.get("SKATE_SUBCLASS")

    held, value = skate.get(task.remote(), timeout=60)
    assert (held, value) == ({"CPU": 0.5, "token": 1}, "own")


def test_those_of_an_actor() -> None:
    named: Any = Actor
    actor = named.options(
        name=Text("it"),
        resources={Name.TOKEN: np.float64(1)},
        max_restarts=Number.ONE,
        max_concurrency=Number.ONE,
        lifetime=Name.DETACHED,
    ).remote()
    assert skate.get(actor.ping.remote(), timeout=60) == "pong"
    for namespace in (None, "token", Name.TOKEN):
        assert skate.get_actor("it", namespace) == actor
    assert skate.get_actor(Text("it")) == actor
    skate.kill(actor)


def test_those_of_a_placement_group() -> None:
    bundles: Any = [{Name.CPU: Number.ONE}]
    group = placement_group(bundles, Name.SPREAD, Text("subclasses"))
    where = PlacementGroupSchedulingStrategy(group, Number.ZERO)
    assert group.bundle_specs == [{"CPU": 1.0}]
    task = identity.options(scheduling_strategy=where)
    assert skate.get([group.ready(), task.remote(5)], timeout=60) == [group, 5]
    assert get_placement_group("subclasses") == group
    remove_placement_group(group)


def test_those_of_a_collective_group() -> None:
    @skate.remote
    def total() -> float:
        x = np.ones(2)
        group = create_group(np.int64(1), Text("ranks")).join(Number.ZERO, timeout=60)
        group.allreduce(x)
        return float(x.sum())

    assert skate.get(total.remote(), timeout=60) == 2.0
