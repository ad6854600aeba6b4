"""What every test gets: a check that it left nothing behind."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from polling import wait_until

# Tests do one thing after the other on purpose, and warnings are errors.
os.environ.setdefault("SKATE_ADVICE", "0")

import skate

if TYPE_CHECKING:
    from collections.abc import Iterator


def engine_of(item: pytest.Item) -> str | None:
    """The engine for which a test was made, if it was made for one."""
    callspec = getattr(item, "callspec", None)
    name: str | None = callspec.params.get("engine_name") if callspec else None
    return name


def needs_ray(item: pytest.Item) -> bool:
    return engine_of(item) == "ray" or "shared_ray" in item.fixturenames  # type: ignore[attr-defined]


@pytest.hookimpl(tryfirst=True)  # before items are chosen by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Ray takes seconds to start and gigabytes while it runs: once, and at the end.
    items.sort(key=needs_ray)
    for item in items:
        if needs_ray(item):
            item.add_marker("ray")


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[None]:
    """One Ray for all tests, which sessions of skate find in this process.

    Scripts that tests run join it by its address. It has what most tests ask for.
    """
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    context = ray.init(
        address="local",
        num_cpus=2,
        num_gpus=1,
        resources={"token": 4},
        object_store_memory=300 * 2**20,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        _system_config={
            "free_objects_period_milliseconds": 10,  # 1000: tests wait for it
            "task_events_report_interval_ms": 200,  # 1000: for these, too
            "local_gc_min_interval_s": 1,  # 10: for streams that nobody reads
            "worker_niceness": 0,  # 15: a busy machine would hardly run them
            "num_workers_soft_limit": 8,  # CPUs: a new process takes half a second
        },
    )
    os.environ["RAY_ADDRESS"] = context.address_info["address"]
    yield
    del os.environ["RAY_ADDRESS"]
    ray.shutdown()


def _ray_runs() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _children() -> set[str]:
    found: set[str] = set()
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended
            found.update((thread / "children").read_text().split())
    return found


def _threads() -> set[threading.Thread]:
    """Running threads; those of Ray, which come and go, do not count."""
    return {
        thread
        for thread in threading.enumerate()
        if not _ray_runs() or thread.name.startswith("skate")
    }


def _descriptors() -> dict[str, str]:
    """Open descriptors of the kinds that an engine opens; not ordinary files."""
    found: dict[str, str] = {}
    if _ray_runs():  # it connects to its workers as they come
        return found
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(link)  # not always a path
        except FileNotFoundError:  # the one that lists the others
            continue
        if target.startswith(("socket:", "pipe:", "anon_inode:", "/memfd:")):
            found[link.name] = target
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test: no child process, thread or descriptor that was not there."""
    if needs_ray(request.node):
        request.getfixturevalue("shared_ray")
    children, threads = _children(), _threads()
    descriptors = _descriptors()
    yield
    skate.shutdown()

    def left() -> list[object]:
        return [
            *(_children() - children),
            *(_threads() - threads),
            *(_descriptors().items() - descriptors.items()),
        ]

    if left():
        gc.collect()
    assert wait_until(lambda: not left()), left()
