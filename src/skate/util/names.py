"""``list_named_actors``."""

from __future__ import annotations

from typing import Any

import skate

from .._runtime import current

__all__ = ["list_named_actors"]


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """The names of live actors.

    Args:
        all_namespaces: give ``{"name": ..., "namespace": ...}`` for every namespace,
            instead of the names in the driver's own.
    """
    here = skate.get_runtime_context().namespace
    named = [
        actor
        for actor in current().list_actors()
        if actor.name is not None and actor.state != "DEAD"
    ]
    if all_namespaces:
        return [{"name": a.name, "namespace": a.namespace} for a in named]
    return [actor.name for actor in named if actor.namespace == here]
