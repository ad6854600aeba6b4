"""Placement groups, as people ask for them: those that there are, and some that were.

A group's id is the session's and a number that counts up: of one that is known no more,
it still tells that it was removed, so those need not be kept for ever.
"""

from __future__ import annotations

from collections.abc import Callable

from ..._placement import GroupInfo

_MAX_REMOVED = 1000


class Placements:
    def __init__(self, session: str, is_created: Callable[[str], bool]) -> None:
        self._session = session
        self._is_created = is_created
        self._count = 0
        self._live: dict[str, GroupInfo] = {}
        self._removed: dict[str, GroupInfo] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._live) + len(self._removed)

    def new_id(self) -> str:
        self._count += 1
        return f"{self._session}{self._count:012x}"

    def add(self, group: str, info: GroupInfo) -> None:
        self._live[group] = info

    def remove(self, group: str) -> bool:
        """False: there is no such group, or no longer."""
        info = self._live.pop(group, None)
        if info is None:
            return False
        self._removed[group] = info._replace(state="REMOVED", reason="")
        if len(self._removed) > _MAX_REMOVED:
            del self._removed[next(iter(self._removed))]
        return True

    def get(self, group: str) -> GroupInfo | None:
        """None: it is not of this session."""
        info = self._live.get(group)
        if info is not None:
            created = self._is_created(group)
            return info._replace(state="CREATED") if created else info
        if group in self._removed:
            return self._removed[group]
        return GroupInfo("", "", (), "REMOVED", "") if self._was(group) else None

    def _was(self, group: str) -> bool:
        number = group.removeprefix(self._session)
        try:
            return number != group and 0 < int(number, 16) <= self._count
        except ValueError:
            return False

    def all(self) -> dict[str, GroupInfo]:
        """Those that there are, and the last that were removed, oldest first."""
        found = dict(self._removed)
        for group in self._live:
            info = self.get(group)
            assert info is not None
            found[group] = info
        return dict(sorted(found.items()))
