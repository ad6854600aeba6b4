"""Every contract test runs on every engine."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from polling import wait_until

import skate
from skate._runtime import statistics

Start = Callable[..., None]


@pytest.fixture(params=["embedded", "inline"])
def engine_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "embedded" and importlib.util.find_spec("skate._core") is None:
        pytest.skip("skate's C++ core is not built")
    return name


@pytest.fixture
def start(engine_name: str) -> Iterator[Start]:
    """Starts the engine with options of the test's own."""

    def start(**options: Any) -> None:
        skate.init(engine_name, **options)

    yield start
    skate.shutdown()


@pytest.fixture
def engine(engine_name: str, start: Start) -> Iterator[str]:
    """A running session of 2 CPUs; afterwards, no value may be left in its store."""
    start(num_cpus=2)
    before = statistics()
    yield engine_name
    if not skate.is_initialized():
        return

    def is_clean() -> bool:
        now = statistics()
        return all(now[key] <= before[key] for key in ("objects", "store_bytes"))

    if not is_clean():
        gc.collect()  # failed tests leave cycles of tracebacks and frames
    assert wait_until(is_clean), (before, statistics())
