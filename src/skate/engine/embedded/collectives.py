"""Collective groups of a session: who is in which, and whose memory may go.

A rank is in its group until it leaves or its process dies. Each join of a process has a
number of its own, so that one is never taken for another of the same rank. A complete
group's memory goes when no rank is in it. Before it is complete, a rank that dies makes
room for another, and the memory goes with the last. A name is used again as soon as
whoever asks for it cannot mean the group that has it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ... import _core
from .processes import Proc


@dataclass(slots=True, eq=False)
class _Group:
    name: str
    segment: int
    world_size: int
    ranks: dict[int, tuple[Proc, int]] = field(default_factory=dict)  # and which join
    present: set[int] = field(default_factory=set)  # have neither left nor died

    @property
    def complete(self) -> bool:
        return len(self.ranks) == self.world_size

    def has_lost(self, rank: int) -> bool:
        """Whether the rank has left, of a complete group.

        Its memory says so before its process tells, and others act on that.
        """
        return rank not in self.present or _core.says_left_group(self.segment, rank)

    def drop(self, rank: int) -> None:
        if not self.complete:
            del self.ranks[rank]
        self.present.discard(rank)


class Collectives:
    """
    Args:
        make_segment: new shared memory of a name and so many bytes; raises OSError.
    """

    def __init__(self, make_segment: Callable[[str, int], int]) -> None:
        self._make_segment = make_segment
        self._named: dict[str, list[_Group]] = {}  # the newest last
        # By process and join, the group and the rank.
        self._of: dict[Proc, dict[int, tuple[_Group, int]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._named.values()))

    def join(
        self, proc: Proc, join: int, name: str, rank: int, world_size: int, size: int
    ) -> tuple[Any, list[int]]:
        """An answer and, once all ranks are there, the memory."""
        group = self._group_of(proc, join) or self._group_for(name, rank)
        if group is None:
            segment = self._make_segment("skate-group", size)
            group = _Group(name, segment, world_size)
            self._named.setdefault(name, []).append(group)
        if group.world_size != world_size:
            return ("mismatch", group.world_size), []
        holder = group.ranks.setdefault(rank, (proc, join))
        if holder != (proc, join):
            return ("taken", holder[0] == proc), []
        group.present.add(rank)
        self._of.setdefault(proc, {})[join] = group, rank
        if not group.complete:
            missing = sorted(set(range(world_size)) - group.ranks.keys())
            return ("waiting", missing), []
        members = [tuple(group.ranks[r][0]) for r in range(world_size)]
        return ("ok", members), [group.segment]

    def _group_of(self, proc: Proc, join: int) -> _Group | None:
        group, _ = self._of.get(proc, {}).get(join, (None, 0))
        return group

    def _group_for(self, name: str, rank: int) -> _Group | None:
        """That a new join means; None: a new one."""
        groups = self._named.get(name)
        if not groups:
            return None
        newest = groups[-1]
        return None if newest.complete and newest.has_lost(rank) else newest

    def leave(self, proc: Proc, join: int) -> None:
        if (group := self._group_of(proc, join)) is None:
            return
        rank = self._drop(proc, join)
        if group.complete and group.present:
            # It may be one that never mapped the memory, where ranks say it
            # themselves: its join failed when all were there already.
            _core.say_left_group(group.segment, rank)

    def died(self, proc: Proc) -> None:
        for join in list(self._of.get(proc, ())):
            self._drop(proc, join)

    def _drop(self, proc: Proc, join: int) -> int:
        joins = self._of[proc]
        group, rank = joins.pop(join)
        if not joins:
            del self._of[proc]
        group.drop(rank)
        if not group.present:
            os.close(group.segment)
            named = self._named[group.name]
            named.remove(group)
            if not named:
                del self._named[group.name]
        return rank
