"""``ray.util``."""

from __future__ import annotations

import importlib
from types import ModuleType

from skate.util import (
    ActorPool,
    as_completed,
    disable_log_once_globally,
    enable_periodic_logging,
    log_once,
    map_unordered,
)

from . import actor_pool, debug, queue

__all__ = [
    "ActorPool",
    "actor_pool",
    "as_completed",
    "collective",
    "debug",
    "disable_log_once_globally",
    "enable_periodic_logging",
    "log_once",
    "map_unordered",
    "queue",
]


def __getattr__(name: str) -> ModuleType:
    if name in ("collective", "multiprocessing"):  # NumPy, and processes, on first use
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(
        f"skate.compat.ray.util has no {name!r}; see "
        "docs/reference/differences-from-ray.md."
    )
