"""Every contract test runs on every engine."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from polling import wait_until

import skate
from skate._runtime import Session, statistics
from skate.engine.protocol import ActorSpec, TaskSpec

Start = Callable[..., Session]
RESOURCES = {"num_cpus", "num_gpus", "resources", "object_store_memory"}


@pytest.fixture(params=["embedded", "inline", "ray"])
def engine_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    for differs in request.node.iter_markers("differs"):
        if name in differs.kwargs:
            pytest.skip(differs.kwargs[name])
    if name == "embedded" and importlib.util.find_spec("skate._core") is None:
        pytest.skip("skate's C++ core is not built")
    return name


@pytest.fixture
def start(engine_name: str) -> Iterator[Start]:
    """Starts the engine with options of the test's own."""

    def start(**options: Any) -> Session:
        if engine_name == "ray":  # the shared Ray has its resources already
            options = {k: v for k, v in options.items() if k not in RESOURCES}
        return skate.init(engine_name, **options)

    yield start
    skate.shutdown()


@pytest.fixture
def engine(
    engine_name: str, start: Start, baseline: Callable[[], bool]
) -> Iterator[str]:
    """A running session of 2 CPUs; afterwards, no value may be left in its store."""
    start(num_cpus=2)
    yield engine_name
    if skate.is_initialized():
        assert baseline(), statistics()


@pytest.fixture
def baseline(engine_name: str) -> Callable[[], bool]:
    """True once nothing is left in the store; says False after some seconds."""
    # Worker processes keep the code of tasks that they started, as long as they live;
    # torch keeps the sparse tensors that it has unpickled.
    code_bytes = 0 if engine_name == "inline" else 50_000

    def is_empty() -> bool:
        now = statistics()
        return now["objects"] == 0 and now["store_bytes"] <= code_bytes

    def returns() -> bool:
        if not is_empty():
            forget_code()
        return wait_until(is_empty)

    return returns


def forget_code() -> None:
    """Drop what engines keep for functions and classes that live on in modules."""
    gc.collect()
    for thing in gc.get_objects():
        if type(thing) in (TaskSpec, ActorSpec):
            thing.exported = None
