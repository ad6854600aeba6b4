"""Placement groups: resources set aside for some tasks and actors, on this machine.

>>> group = placement_group([{"CPU": 1}, {"CPU": 1, "GPU": 1}])
>>> group.wait(timeout_seconds=10)
True
>>> where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=1)
>>> ref = train.options(scheduling_strategy=where, num_gpus=1).remote()
>>> remove_placement_group(group)
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import skate

from .._exact import exact
from .._options import check_quantity
from .._placement import GroupInfo, group_of
from .._runtime import current

__all__ = [
    "PlacementGroup",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
]

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


class PlacementGroup:
    """A handle of a placement group; may be passed to tasks and actors."""

    def __init__(self, id: str, bundles: Sequence[Mapping[str, float]]) -> None:  # noqa: A002 - Ray's name
        self.id = id
        self._bundles = tuple(dict(bundle) for bundle in bundles)

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """The bundles, in order."""
        return list(self._bundles)

    @property
    def bundle_count(self) -> int:
        """How many bundles there are."""
        return len(self._bundles)

    @property
    def is_empty(self) -> bool:
        """True for a group that was never created."""
        return not self.id

    def ready(self) -> skate.ObjectRef[PlacementGroup]:
        """A ref of this group that is there once all its resources are set aside."""
        from .scheduling_strategies import PlacementGroupSchedulingStrategy

        where = PlacementGroupSchedulingStrategy(self)
        ref: skate.ObjectRef[PlacementGroup] = _ready.options(
            scheduling_strategy=where
        ).remote(self)
        return ref

    def wait(self, timeout_seconds: float = 30) -> bool:
        """True once the resources are set aside; False if not in time, or removed."""
        if _info(self).state == "REMOVED":
            return False
        ref = self.ready()
        ready: list[Any] = []
        try:
            ready, _ = skate.wait([ref], timeout=timeout_seconds)
        finally:
            if not ready:  # nobody will ask for it
                skate.cancel(ref)
        return bool(ready) and _info(self).state == "CREATED"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id}, {list(self._bundles)})"


@skate.remote(num_cpus=0)
def _ready(group: PlacementGroup) -> PlacementGroup:
    return group


def placement_group(
    bundles: Sequence[Mapping[str, float]],
    strategy: str | None = None,
    name: str = "",
    lifetime: str | None = None,
) -> PlacementGroup:
    """Set resources aside; returns at once, see ``ready`` and ``wait``.

    Args:
        bundles: amounts by name, such as ``[{"CPU": 1}, {"GPU": 0.5}]``.
        strategy: PACK, SPREAD, STRICT_PACK or STRICT_SPREAD. They are the same on one
            machine, but for STRICT_SPREAD of several bundles, which can never be.
        name: to find it by ``get_placement_group``.
        lifetime: None or ``"detached"``; it lives until it is removed in either case.

    Raises:
        TypeError, ValueError: an argument is wrong.

    Warns:
        RuntimeWarning: the session can never have it; says why.
    """
    if strategy is None:
        strategy = "PACK"
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {STRATEGIES}, not {strategy!r}.")
    if lifetime not in (None, "detached"):
        raise ValueError(f"lifetime must be None or 'detached', not {lifetime!r}.")
    checked = _check_bundles(exact(bundles))
    strategy, name = exact(strategy), exact(name)
    engine = current()
    handle = PlacementGroup("", checked)
    try:
        handle.id = engine.create_placement_group(checked, strategy, name)
        reason = _info(handle).reason
        if reason:
            warnings.warn(
                f"placement group {name or handle.id} will never be ready: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
    except BaseException:  # the warning may be an error: nobody has the handle
        if handle.id:
            engine.remove_placement_group(handle.id)
        raise
    return handle


def _check_bundles(bundles: Any) -> list[dict[str, float]]:
    if not isinstance(bundles, (list, tuple)) or not bundles:
        raise ValueError(f"bundles must be a list of dicts, not {bundles!r}.")
    checked = []
    for bundle in bundles:
        if not isinstance(bundle, Mapping) or not any(bundle.values()):
            raise ValueError(
                f"a bundle is a dict of amounts above zero, such as {{'CPU': 1}}, not "
                f"{bundle!r}."
            )
        for key in bundle:
            if not isinstance(key, str):
                raise TypeError(f"the names in a bundle must be strings, not {key!r}.")
        amounts = {
            key: float(check_quantity(f"{key} of a bundle", amount))
            for key, amount in bundle.items()
        }
        checked.append({key: amount for key, amount in amounts.items() if amount})
    return checked


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Give the resources back. What runs in the group is ended, the rest never runs."""
    current().remove_placement_group(placement_group.id)


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The group with this name.

    Raises:
        ValueError: there is none.
    """
    for id_, info in current().placement_groups().items():
        if info.name == placement_group_name != "" and info.state != "REMOVED":
            return PlacementGroup(id_, info.bundles)
    raise ValueError(f"there is no placement group named {placement_group_name!r}.")


def get_current_placement_group() -> PlacementGroup | None:
    """The group in which the calling task or actor runs; None if in none."""
    engine = current()
    group = group_of(engine.assigned_resources())
    if group is None:
        return None
    return PlacementGroup(group, engine.placement_groups(group)[group].bundles)


def placement_group_table(
    placement_group: PlacementGroup | None = None,
) -> dict[str, Any]:
    """What is known of a group, or of all groups by id.

    ``state`` is PENDING, CREATED or REMOVED; ``stats`` has ``scheduling_state``, which
    is INFEASIBLE for one that can never be, and ``reason``, which says why.
    """
    if placement_group is not None:
        return _row(placement_group.id, _info(placement_group))
    groups = current().placement_groups()
    return {group: _row(group, info) for group, info in groups.items()}


def _row(group: str, info: GroupInfo) -> dict[str, Any]:
    scheduling = {"PENDING": "QUEUED", "CREATED": "FINISHED"}.get(info.state, "REMOVED")
    return {
        "placement_group_id": group,
        "name": info.name,
        "bundles": dict(enumerate(map(dict, info.bundles))),
        "strategy": info.strategy,
        "state": info.state,
        "stats": {
            "scheduling_state": "INFEASIBLE" if info.reason else scheduling,
            "reason": info.reason,
        },
    }


def _info(group: PlacementGroup) -> GroupInfo:
    found = current().placement_groups(group.id).get(group.id)
    if found is None:
        raise ValueError(f"{group!r} is of an earlier session.")
    return found
