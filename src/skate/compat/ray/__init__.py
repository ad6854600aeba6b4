"""Ray's names over skate: ``import skate.compat.ray as ray``.

A program that says ``import ray`` itself runs unchanged with

    python -m skate.compat.ray script.py args...

``docs/reference/differences-from-ray.md`` lists what is the same, accepted and refused.
"""

from skate import (
    ObjectRef,
    ObjectRefGenerator,
    available_resources,
    cancel,
    cluster_resources,
    get,
    get_actor,
    get_gpu_ids,
    get_runtime_context,
    is_initialized,
    kill,
    method,
    nodes,
    put,
    remote,
    wait,
)

from . import actor, exceptions, runtime_context, runtime_env, util
from .session import init, shutdown, timeline

__version__ = "2.60.0"  # the Ray whose names these are

ObjectID = ObjectRef
SCRIPT_MODE = 0
WORKER_MODE = 1

__all__ = [
    "SCRIPT_MODE",
    "WORKER_MODE",
    "ObjectID",
    "ObjectRef",
    "ObjectRefGenerator",
    "__version__",
    "actor",
    "available_resources",
    "cancel",
    "cluster_resources",
    "exceptions",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "method",
    "nodes",
    "put",
    "remote",
    "runtime_context",
    "runtime_env",
    "shutdown",
    "timeline",
    "util",
    "wait",
]


def __getattr__(name: str) -> object:
    import importlib

    from .missing import LIBRARIES, explain

    if name in ("cloudpickle", "experimental"):  # imported on first use, as in Ray
        return importlib.import_module(f"{__name__}.{name}")
    if name in LIBRARIES:
        raise AttributeError(explain(f"ray.{name}"))
    raise AttributeError(
        f"skate.compat.ray has no {name!r}. docs/reference/differences-from-ray.md "
        "lists what it has; for the rest, use skate.init(engine='ray')."
    )
