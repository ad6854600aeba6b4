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
    list_named_actors,
    log_once,
    map_unordered,
    register_serializer,
)

from . import actor_pool, debug, metrics, queue, serialization
from .placement_group import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

__all__ = [
    "ActorPool",
    "actor_pool",
    "as_completed",
    "collective",
    "debug",
    "deregister_serializer",
    "disable_log_once_globally",
    "enable_periodic_logging",
    "get_current_placement_group",
    "get_node_ip_address",
    "get_placement_group",
    "inspect_serializability",
    "list_named_actors",
    "log_once",
    "map_unordered",
    "metrics",
    "placement_group",
    "placement_group_table",
    "queue",
    "register_serializer",
    "remove_placement_group",
    "serialization",
]


def __getattr__(name: str) -> ModuleType:
    if name in ("collective", "multiprocessing"):  # NumPy, and processes, on first use
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(
        f"skate.compat.ray.util has no {name!r}; see "
        "docs/reference/differences-from-ray.md."
    )
