"""Where a task or an actor runs: Ray's strategies, on one machine.

``scheduling_strategy`` may also be ``"DEFAULT"`` or ``"SPREAD"``, which are the same.
What no machine but another could fulfil is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import skate

from .._exact import exact
from .._placement import Placement
from .placement_group import PlacementGroup

__all__ = [
    "DoesNotExist",
    "Exists",
    "In",
    "NodeAffinitySchedulingStrategy",
    "NodeLabelSchedulingStrategy",
    "NotIn",
    "PlacementGroupSchedulingStrategy",
]


class PlacementGroupSchedulingStrategy:
    """Take the resources from a placement group.

    Args:
        placement_group: the group; None is no group.
        placement_group_bundle_index: which bundle; -1 is any that has room.
        placement_group_capture_child_tasks: only False: give the tasks that a task of
            the group starts a strategy of their own.
    """

    def __init__(
        self,
        placement_group: PlacementGroup | None,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        if placement_group_capture_child_tasks:
            raise ValueError(
                "placement_group_capture_child_tasks=True is not possible: give the "
                "tasks that run in the group a scheduling_strategy of their own, with "
                "skate.util.placement_group.get_current_placement_group()."
            )
        self.placement_group = placement_group
        self.placement_group_bundle_index = exact(placement_group_bundle_index)
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks
        count = 0 if placement_group is None else placement_group.bundle_count
        if not -1 <= placement_group_bundle_index < max(count, 0):
            raise ValueError(
                f"placement_group_bundle_index={placement_group_bundle_index!r}: the "
                f"group has {count} bundles."
            )

    @property
    def skate_placement(self) -> Placement | None:
        """What options make of it."""
        group = self.placement_group
        if group is None or group.is_empty:
            return None
        bundles = tuple(group.bundle_specs)
        return Placement(group.id, self.placement_group_bundle_index, bundles)


class NodeAffinitySchedulingStrategy:
    """Run on one machine, which must be this one unless ``soft``."""

    def __init__(self, node_id: str, soft: bool) -> None:
        self.node_id = node_id
        self.soft = soft

    @property
    def skate_placement(self) -> None:
        """Nothing to choose.

        Raises:
            ValueError: another machine is meant.
        """
        here = skate.nodes()[0]["NodeID"]
        if self.node_id != here and not self.soft:
            raise ValueError(
                f"there is no node {self.node_id!r}: skate runs on one, {here!r}. Use "
                "soft=True, or skate.get_runtime_context().get_node_id()."
            )


class _Values:
    def __init__(self, *values: str) -> None:
        if not values or not all(isinstance(value, str) for value in values):
            raise ValueError(
                f"{type(self).__name__} takes one or more strings, not {values!r}."
            )
        self.values = list(values)


class In(_Values):
    """The label has one of these values."""

    needs_label = True


class NotIn(_Values):
    """The label has none of these values."""

    needs_label = False


class Exists:
    """There is such a label."""

    needs_label = True


class DoesNotExist:
    """There is no such label."""

    needs_label = False


class NodeLabelSchedulingStrategy:
    """Run on a machine with certain labels. This one has none.

    Args:
        hard: label -> In, NotIn, Exists or DoesNotExist; must hold.
        soft: the same, as a wish.
    """

    def __init__(
        self, hard: Mapping[str, Any], *, soft: Mapping[str, Any] | None = None
    ) -> None:
        if not hard and not soft:
            raise ValueError("NodeLabelSchedulingStrategy needs hard or soft labels.")
        for key, operator in {**(hard or {}), **(soft or {})}.items():
            if not isinstance(operator, (In, NotIn, Exists, DoesNotExist)):
                raise ValueError(
                    f"label {key!r} needs In, NotIn, Exists or DoesNotExist, not "
                    f"{operator!r}."
                )
        self.hard = dict(hard or {})
        self.soft = dict(soft or {})

    @property
    def skate_placement(self) -> None:
        """Nothing to choose.

        Raises:
            ValueError: this machine lacks a label that must be there.
        """
        lacking = [key for key, operator in self.hard.items() if operator.needs_label]
        if lacking:
            raise ValueError(
                f"no machine has the labels {lacking!r}: skate runs on this one, which "
                "has none."
            )
