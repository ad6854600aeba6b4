"""Collective groups: ranks that reduce, broadcast and meet over shared memory.

Make a group where the ranks are started, pass it to them, and ``join`` in each:

    group = skate.collective.create_group(world_size=2)
    for rank, actor in enumerate(actors):
        actor.run.remote(group, rank)

    def run(self, group, rank):  # in the actor
        member = group.join(rank)
        gradients = member.empty((1000,), "float32")
        ...
        member.allreduce(gradients, op="mean")
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from ._runtime import current
from .engine.protocol import Group as Group

__all__ = ["Group", "GroupSpec", "create_group"]


@dataclass(frozen=True)
class GroupSpec:
    """Names a group that ranks can join. May be passed anywhere."""

    name: str
    world_size: int

    def join(self, rank: int, timeout: float | None = None) -> Group:
        """Become ``rank``; returns when every rank has joined.

        Args:
            rank: from 0 to ``world_size - 1``, each taken once.
            timeout: seconds to wait for the others; None waits for ever.

        Raises:
            ValueError: there is no such rank.
            CollectiveTimeoutError: a rank did not join; see ``.missing_ranks``.
        """
        if not 0 <= rank < self.world_size:
            raise ValueError(
                f"rank={rank!r}: this group has ranks 0 to {self.world_size - 1}."
            )
        return current().join_group(self.name, rank, self.world_size, timeout)


def create_group(world_size: int, name: str | None = None) -> GroupSpec:
    """Describe a new group of ``world_size`` ranks; each of them joins it once.

    Args:
        name: a name of your own, unused so far in the session; None makes one up.
    """
    if world_size < 1:
        raise ValueError(f"world_size={world_size!r}; expected at least 1.")
    return GroupSpec(name or f"group-{uuid.uuid4().hex[:12]}", world_size)
