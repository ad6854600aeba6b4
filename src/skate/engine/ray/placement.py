"""Placement groups: Ray's own, as the engines tell of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..._placement import GroupInfo, describe, total

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..._placement import Placement

# Ray's states between these, of a group that gets its bundles or gets them anew.
_STATES = {"CREATED": "CREATED", "REMOVED": "REMOVED"}


def create(bundles: Sequence[Mapping[str, float]], strategy: str, name: str) -> str:
    """The id of a new group, in hex."""
    group = placement_group([dict(one) for one in bundles], strategy, name)
    return str(group.id.hex())


def remove(group: str) -> None:
    """Give its resources back."""
    remove_placement_group(_handle(group))


def table(nodes: Sequence[Mapping[str, float]]) -> dict[str, GroupInfo]:
    """Every group of the cluster by its id, on machines of these resources."""
    rows = placement_group_table()
    return {group: _info(row, nodes) for group, row in rows.items()}


def _info(row: Mapping[str, Any], nodes: Sequence[Mapping[str, float]]) -> GroupInfo:
    bundles = tuple(row["bundles"][index] for index in sorted(row["bundles"]))
    state = _STATES.get(row["state"], "PENDING")
    reason = why_never(bundles, row["strategy"], nodes) if state == "PENDING" else ""
    return GroupInfo(row["name"], row["strategy"], bundles, state, reason)


def why_never(
    bundles: Sequence[Mapping[str, float]],
    strategy: str,
    nodes: Sequence[Mapping[str, float]],
) -> str:
    """Why no such group fits machines of these resources; else the empty string."""
    if strategy == "STRICT_SPREAD" and len(bundles) > len(nodes):
        return (
            f"STRICT_SPREAD puts {len(bundles)} bundles on as many machines, and the "
            f"cluster has {len(nodes)}."
        )
    wanted, there = total(bundles), total(nodes)
    if not _fits(wanted, there):
        return f"it asks for {describe(wanted)}, and the cluster has {describe(there)}."
    for bundle in [wanted] if strategy == "STRICT_PACK" else bundles:
        if not any(_fits(bundle, node) for node in nodes):
            return f"no machine of the cluster has {describe(bundle)}."
    return ""


def _fits(wanted: Mapping[str, float], there: Mapping[str, float]) -> bool:
    return all(there.get(key, 0.0) >= amount for key, amount in wanted.items())


def strategy_of(placement: Placement) -> Any:
    """Ray's scheduling strategy for what runs in a group."""
    return PlacementGroupSchedulingStrategy(
        _handle(placement.group, placement.bundles),
        placement_group_bundle_index=placement.bundle,
    )


def placed(resources: Mapping[str, float]) -> dict[str, float]:
    """What the calling task holds, under the names that ``_placement`` gives."""
    group = ray.get_runtime_context().get_placement_group_id()
    if group is None:
        return dict(resources)
    names = {f"{key}_group_{group}": n for key, n in resources.items()}
    return {**names, f"bundle_group_{group}": 0.0}


def _handle(group: str, bundles: Sequence[Mapping[str, float]] = ()) -> Any:
    return PlacementGroup(
        ray.PlacementGroupID(bytes.fromhex(group)),
        bundle_cache=[dict(bundle) for bundle in bundles] or None,
    )
