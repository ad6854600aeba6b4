"""``ray.util``."""

from __future__ import annotations

import importlib
from types import ModuleType

from skate.util import (
    ActorPool,
    as_completed,
    deregister_serializer,
    disable_log_once_globally,
    enable_periodic_logging,
    get_node_ip_address,
    inspect_serializability,
    log_once,
    map_unordered,
    register_serializer,
)

from . import actor_pool, debug, metrics, queue, serialization

__all__ = [
    "ActorPool",
    "actor_pool",
    "as_completed",
    "collective",
    "debug",
    "deregister_serializer",
    "disable_log_once_globally",
    "enable_periodic_logging",
    "get_node_ip_address",
    "inspect_serializability",
    "log_once",
    "map_unordered",
    "metrics",
    "queue",
    "register_serializer",
    "serialization",
]


def __getattr__(name: str) -> ModuleType:
    if name in ("collective", "multiprocessing"):  # NumPy, and processes, on first use
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(
        f"skate.compat.ray.util has no {name!r}; see "
        "docs/reference/differences-from-ray.md."
    )
