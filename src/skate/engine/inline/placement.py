"""Placement groups: units that take resources and keep them."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from ..._placement import GroupInfo, group_of
from ...exceptions import TaskPlacementGroupRemoved
from .. import serialize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .baton import Baton, Home
    from .resources import Resources


class Groups:
    """All placement groups of a session. The caller holds the engine's lock."""

    def __init__(self, baton: Baton, resources: Resources) -> None:
        self._baton = baton
        self._resources = resources
        self._infos: dict[str, GroupInfo] = {}

    def create(self, info: GroupInfo) -> str:
        group = secrets.token_hex(8)
        self._infos[group] = info
        if not info.reason:
            self._baton.post(_Reservation(self, group, self._baton.tasks))
        return group

    def remove(self, group: str) -> None:
        info = self._infos.get(group)
        if info is None or info.state == "REMOVED":
            return
        self._infos[group] = info._replace(state="REMOVED", reason="")
        if info.state == "CREATED":
            self._resources.remove_group(group, info.bundles)

    def infos(self) -> dict[str, GroupInfo]:
        return dict(self._infos)

    def refusal(self, demand: Mapping[str, int]) -> bytes | None:
        """The error of a call that asks for resources of a group that was removed."""
        group = group_of(demand)
        if group is None:
            return None
        info = self._infos.get(group)  # None: of an earlier session
        if info is not None and info.state != "REMOVED":
            return None
        return serialize.dump_system_error(
            TaskPlacementGroupRemoved("its placement group was removed.")
        )

    def fits(self, group: str) -> bool:
        info = self._infos[group]
        return info.state == "REMOVED" or self._resources.fits_group(info.bundles)

    def take(self, group: str) -> None:
        info = self._infos[group]
        if info.state == "PENDING":
            self._resources.create_group(group, info.bundles)
            self._infos[group] = info._replace(state="CREATED")


class _Reservation:
    """Takes what a group asks for as soon as it is free. A unit of the baton."""

    anywhere = False

    def __init__(self, groups: Groups, group: str, home: Home) -> None:
        self.home = home
        self._groups = groups
        self._group = group

    def startable(self) -> bool:
        return self._groups.fits(self._group)

    def begin(self) -> None:
        self._groups.take(self._group)

    def run(self) -> None:
        """Nothing: taking is all."""
