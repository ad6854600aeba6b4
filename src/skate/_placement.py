"""Placement groups: resources that are set aside, and the names that they have there.

A group that got what it asks for adds amounts to the session's resources, under names
of its own. Its tasks ask for those instead of the plain ones; nothing else is
special.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ._amounts import add_up
from .exceptions import ResourceError

# What even a task without CPUs takes of a bundle, so that it waits for the group.
_SHARE = 0.001
_SHARES = 1000.0  # as in Ray: more tasks than a session has processes


class Placement(NamedTuple):
    """The group that a task, or an actor, takes its resources from."""

    group: str
    bundle: int  # -1: any
    bundles: tuple[Mapping[str, float], ...]

    def place(self, name: str, wanted: Mapping[str, float]) -> dict[str, float]:
        """``wanted`` under the group's names.

        Raises:
            ResourceError: no bundle can ever hold it.
        """
        chosen = self.bundles if self.bundle < 0 else [self.bundles[self.bundle]]
        if not any(_fits(wanted, bundle) for bundle in chosen):
            asked = describe(wanted)
            there = "; ".join(map(describe, chosen))
            raise ResourceError(
                f"{name} asks for {asked}, and no bundle of its placement group has "
                f"that: {there}. Ask for less, or make a larger bundle."
            )
        placed = {}
        for key, amount in {**wanted, "bundle": _SHARE}.items():
            placed[f"{key}_group_{self.group}"] = amount
            if self.bundle >= 0:
                placed[f"{key}_group_{self.bundle}_{self.group}"] = amount
        return placed


class GroupInfo(NamedTuple):
    """One placement group, as the engine tells it."""

    name: str
    strategy: str
    bundles: tuple[Mapping[str, float], ...]
    state: str  # PENDING, CREATED or REMOVED
    reason: str  # why it can never be created; else ""

    @staticmethod
    def of(
        bundles: Sequence[Mapping[str, float]],
        strategy: str,
        name: str,
        session: Mapping[str, float],
    ) -> GroupInfo:
        """One that was just asked for, in a session with those resources."""
        reason = why_never(bundles, strategy, session)
        return GroupInfo(name, strategy, tuple(bundles), "PENDING", reason)


def total(bundles: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """What all bundles hold together."""
    return add_up(bundles)


def set_aside(group: str, bundles: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The amounts that ``group`` adds to the session's when it is created."""
    parts: list[dict[str, float]] = []
    for index, bundle in enumerate(bundles):
        for key, amount in {**bundle, "bundle": _SHARES}.items():
            parts.append({f"{key}_group_{group}": amount})
            parts.append({f"{key}_group_{index}_{group}": amount})
    return add_up(parts)


def why_never(
    bundles: Sequence[Mapping[str, float]],
    strategy: str,
    session: Mapping[str, float],
) -> str:
    """Why a group can never be created; else the empty string."""
    if strategy == "STRICT_SPREAD" and len(bundles) > 1:
        return f"STRICT_SPREAD puts {len(bundles)} bundles on as many machines; one is."
    wanted = total(bundles)
    if _fits(wanted, session):
        return ""
    return f"it asks for {describe(wanted)}, and this session has {describe(session)}."


def group_of(resources: Iterable[str]) -> str | None:
    """The group that one of the names belongs to."""
    for name in resources:
        _, found, group = name.partition("_group_")
        if found:
            return group.rpartition("_")[2]
    return None


def plain(resources: Mapping[str, float]) -> dict[str, float]:
    """Amounts that were placed, under their plain names again."""
    found = {}
    for name, amount in resources.items():
        key, is_placed, group = name.partition("_group_")
        if not is_placed or ("_" not in group and key != "bundle"):
            found[key] = amount
    return found


def lends(name: str) -> bool:
    """True for CPUs: a blocked task lets others have them."""
    return name == "CPU" or name.startswith("CPU_group_")


def describe(amounts: Mapping[str, float]) -> str:
    """Amounts, for people."""
    return ", ".join(f"{key}: {n:g}" for key, n in amounts.items()) or "nothing"


def _fits(wanted: Mapping[str, float], there: Mapping[str, float]) -> bool:
    return all(there.get(key, 0.0) >= amount for key, amount in wanted.items())
