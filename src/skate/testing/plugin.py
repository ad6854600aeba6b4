"""One session of skate for all tests, clean for each of them.

A test that leaves nothing behind costs the next one nothing but a look. One that leaves
objects, tasks or actors fails, with their names, and its session is ended with all that
runs in it: the next test that needs one gets a new one.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import sys
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import skate
import skate.debug

# Workers let go of what they had a moment after the result; a leak does not go away.
_PATIENCE_S = 2.0
_POLL_S = 0.002
# Stacks are shown when this much of a test's time limit has gone by.
_SHOW_STACKS_AFTER = 0.9

_MARKS = (
    "skate_inline: run this test on the inline engine, in the test's own process",
    "skate_leaks: let this test leave objects, tasks and actors behind",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("skate")
    group.addoption(
        "--skate-engine",
        default=None,
        help="engine for the skate_session fixture: embedded or inline",
    )
    group.addoption(
        "--skate-num-cpus",
        type=int,
        default=None,
        help="CPUs of the session of the skate_session fixture",
    )
    parser.addini("skate_engine", "engine for skate_session", default="embedded")
    parser.addini("skate_num_cpus", "CPUs of skate_session", default="2")


def pytest_configure(config: pytest.Config) -> None:
    for mark in _MARKS:
        config.addinivalue_line("markers", mark)


@dataclass(frozen=True)
class _Wanted:
    engine: str
    num_cpus: int


class _Sessions:
    """The session that tests share. It starts with the first test that wants it."""

    def __init__(self) -> None:
        self._running: _Wanted | None = None
        self._session: Any = None  # what skate.init gave

    def open(self, wanted: _Wanted) -> Any:
        if self._running != wanted or not skate.is_initialized():
            self.close()
            self._session = skate.init(wanted.engine, num_cpus=wanted.num_cpus)
            self._running = wanted
        return self._session

    def close(self) -> None:
        self._running = self._session = None
        skate.shutdown()


@pytest.fixture(scope="session")
def _skate_sessions() -> Iterator[_Sessions]:
    sessions = _Sessions()
    yield sessions
    sessions.close()


@pytest.fixture
def skate_session(
    request: pytest.FixtureRequest, _skate_sessions: _Sessions
) -> Iterator[Any]:
    """A running session of skate, the same for all tests that use this fixture.

    What it gives is what ``skate.init`` returns. A test that leaves objects, tasks or
    actors behind fails at its end, unless it is marked ``skate_leaks``.
    """
    node = request.node
    session = _skate_sessions.open(_wanted(node))
    with _stacks_before_timeout(node):
        yield session
    if not skate.is_initialized():
        return  # the test ended it; the next one gets another
    report = getattr(node, "skate_report", None)
    failed = report is not None and report.failed
    # The traceback of a failed test holds its variables, refs among them: no news.
    left = skate.debug.leftovers() if failed else _what_stays()
    if not left:
        return
    _skate_sessions.close()
    if not failed and node.get_closest_marker("skate_leaks") is None:
        pytest.fail(
            f"the test left behind: {', '.join(left)}. Refs and handles that outlive "
            "it, in a module or a fixture, hold them; or tasks still run that it did "
            "not wait for. Drop them, wait for them, or mark the test skate_leaks.",
            pytrace=False,
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.skate_report = report  # type: ignore[attr-defined]
    return report


def _wanted(node: Any) -> _Wanted:
    config = node.config
    num_cpus = config.getoption("--skate-num-cpus")
    if num_cpus is None:
        num_cpus = int(config.getini("skate_num_cpus"))
    engine = config.getoption("--skate-engine") or config.getini("skate_engine")
    if node.get_closest_marker("skate_inline") is not None:
        engine = "inline"
    return _Wanted(engine, num_cpus)


def _what_stays() -> list[str]:
    """What is left in the session after a moment, in words."""
    if not skate.debug.leftovers():
        return []
    gc.collect()  # cycles of the test's hold refs too
    deadline = time.monotonic() + _PATIENCE_S
    while (left := skate.debug.leftovers()) and time.monotonic() < deadline:
        threading.Event().wait(_POLL_S)
    return left


@contextlib.contextmanager
def _stacks_before_timeout(node: Any) -> Iterator[None]:
    """Shows where every process stands shortly before the test runs out of time."""
    limit = _time_limit(node)
    if limit is None:
        yield
        return
    timer = threading.Timer(limit * _SHOW_STACKS_AFTER, _show_stacks, [node])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _time_limit(node: Any) -> float | None:
    """The limit that pytest-timeout sets for this test, in seconds."""
    timeout_plugin = node.config.pluginmanager.getplugin("timeout")
    settings = getattr(timeout_plugin, "_get_item_settings", None)
    if settings is None:  # it is not loaded, or a version that we do not know
        return None
    limit = settings(node).timeout
    return float(limit) if limit else None


def _show_stacks(node: Any) -> None:
    capture = node.config.pluginmanager.getplugin("capturemanager")
    suspended = capture.global_and_fixture_disabled() if capture else None
    with suspended or contextlib.nullcontext():
        print(f"\nskate: {node.nodeid} is about to time out", file=sys.stderr)
        try:
            print(skate.debug.stacks(), file=sys.stderr, flush=True)
        except Exception as error:  # the session may be what is broken
            print(f"skate: no stacks of workers: {error}", file=sys.stderr)
            faulthandler.dump_traceback()
