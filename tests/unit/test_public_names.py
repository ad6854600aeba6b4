from __future__ import annotations

import subprocess
import sys

import pytest

import skate

NAMES = [
    "ActorClass",
    "ActorHandle",
    "ActorMethod",
    "ObjectRef",
    "ObjectRefGenerator",
    "ReceivedCall",
    "RemoteFunction",
    "RuntimeContext",
    "Session",
    "as_completed",
    "available_resources",
    "cancel",
    "cluster_resources",
    "empty",
    "exceptions",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "lend",
    "map_unordered",
    "method",
    "nodes",
    "progress",
    "put",
    "receiver",
    "remote",
    "shutdown",
    "summary",
    "timeline",
    "wait",
    "why",
]


def test_the_public_names_are_those_that_were_agreed() -> None:
    assert skate.__all__ == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_says_that_it_is_skates(name: str) -> None:
    thing = getattr(skate, name)
    if name != "exceptions":
        assert thing.__module__ == "skate"
    assert thing.__doc__


def test_every_exception_is_public_and_documented() -> None:
    exceptions = skate.exceptions
    defined = {
        name
        for name, thing in vars(exceptions).items()
        if isinstance(thing, type) and issubclass(thing, Exception)
    }
    assert set(exceptions.__all__) == defined
    assert exceptions.__all__ == sorted(exceptions.__all__)
    for name in defined - {"RemoteTraceback", "PerformanceAdvice"}:
        assert issubclass(getattr(exceptions, name), exceptions.SkateError)
        assert name in (exceptions.__doc__ or "")


def test_importing_skate_starts_nothing_and_imports_little() -> None:
    text = """
import sys, threading
import skate
heavy = {"numpy", "cloudpickle", "asyncio", "multiprocessing", "torch", "skate._core"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert threading.active_count() == 1
assert not skate.is_initialized()
"""
    subprocess.run([sys.executable, "-c", text], check=True, timeout=60)
