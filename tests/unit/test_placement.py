"""The names and amounts of placement groups."""

from __future__ import annotations

from skate._amounts import in_units
from skate._placement import Placement, set_aside


def test_a_bundle_has_room_for_any_number_of_tasks_without_cpus() -> None:
    bundles = ({"CPU": 1.0},)
    there = in_units(set_aside("g", bundles))
    for bundle in (-1, 0):
        taken = in_units(Placement("g", bundle, bundles).place("f", {}))
        assert all(0 < 100_000 * amount <= there[key] for key, amount in taken.items())
