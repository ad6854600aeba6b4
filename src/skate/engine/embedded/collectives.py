"""Collective groups of a session: who is in which, and whose memory may go.

A rank is in its group until it leaves or its process dies. A complete group's memory
goes when no rank is in it. Before it is complete, a rank that dies makes room for
another, and the memory goes with the last. A name is used again as soon as whoever asks
for it cannot mean the group that has it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ... import _core
from .processes import Proc


@dataclass(slots=True, eq=False)
class _Group:
    name: str
    number: int  # of all groups, whatever their names
    segment: int
    world_size: int
    ranks: dict[int, Proc] = field(default_factory=dict)
    present: dict[int, Proc] = field(default_factory=dict)  # neither left nor dead

    @property
    def complete(self) -> bool:
        return len(self.ranks) == self.world_size

    def drop(self, rank: int) -> None:
        complete = self.complete
        del self.present[rank]
        if not complete:
            del self.ranks[rank]


class Collectives:
    """
    Args:
        make_segment: new shared memory of a name and so many bytes; raises OSError.
    """

    def __init__(self, make_segment: Callable[[str, int], int]) -> None:
        self._make_segment = make_segment
        self._named: dict[str, list[_Group]] = {}  # the newest last
        self._numbers = itertools.count(1)
        self._of: dict[Proc, dict[_Group, None]] = {}  # that it is in

    def __len__(self) -> int:
        return sum(map(len, self._named.values()))

    def join(
        self, proc: Proc, name: str, rank: int, world_size: int, size: int
    ) -> tuple[Any, list[int]]:
        """An answer and, once all ranks are there, the memory.

        The answer has the group's number if the rank is in it now: see ``leave``.
        """
        groups = self._named.get(name, [])
        group = groups[-1] if groups else None
        if group is not None and group.complete and rank not in group.present:
            group = None  # that one is over for this rank
        if group is None:
            segment = self._make_segment("skate-group", size)
            group = _Group(name, next(self._numbers), segment, world_size)
            self._named.setdefault(name, []).append(group)
        if group.world_size != world_size:
            return ("mismatch", group.world_size, 0), []
        holder = group.ranks.setdefault(rank, proc)
        if holder != proc:
            return ("taken", rank, 0), []
        group.present[rank] = proc
        self._of.setdefault(proc, {})[group] = None
        if not group.complete:
            missing = sorted(set(range(world_size)) - group.ranks.keys())
            return ("waiting", missing, group.number), []
        members = [tuple(group.ranks[r]) for r in range(world_size)]
        return ("ok", members, group.number), [group.segment]

    def leave(
        self, proc: Proc, name: str, rank: int | None = None, number: int | None = None
    ) -> None:
        """``rank``: None for any one of its ranks.

        ``number``: of the group that is meant; None: the oldest of the name.
        """
        for group in self._named.get(name, []):
            if number not in (None, group.number):
                continue
            mine = [r for r, who in group.present.items() if who == proc]
            if rank is not None:
                mine = [r for r in mine if r == rank]
            if not mine:
                continue
            self._drop(group, mine[:1])
            if group.complete and group.present:
                # It may be one that never mapped the memory, where ranks say it
                # themselves: its join failed when all were there already.
                _core.say_left_group(group.segment, mine[0])
            return

    def died(self, proc: Proc) -> None:
        for group in list(self._of.get(proc, ())):
            self._drop(group, [r for r, who in group.present.items() if who == proc])

    def _drop(self, group: _Group, ranks: list[int]) -> None:
        for rank in ranks:
            proc = group.present[rank]
            group.drop(rank)
            if proc not in group.present.values():
                groups = self._of[proc]
                del groups[group]
                if not groups:
                    del self._of[proc]
        if not group.present:
            os.close(group.segment)
            named = self._named[group.name]
            named.remove(group)
            if not named:
                del self._named[group.name]
