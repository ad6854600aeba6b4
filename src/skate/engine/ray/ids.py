"""The numbers that skate's refs carry, each holding Ray's own ref or handle.

``ObjectRef._id`` is an int. On this engine it is one that holds what Ray counts, so a
skate ref lives exactly as long as its Ray ref, and there is no table to keep.
"""

from __future__ import annotations

from typing import Any

import ray
import ray.actor


class RefId(int):
    """Ray's id of an object, as a number, with the ``ray.ObjectRef`` itself."""

    ref: ray.ObjectRef

    @classmethod
    def of(cls, ref: ray.ObjectRef) -> RefId:
        self = cls.from_bytes(ref.binary(), "big")
        self.ref = ref
        return self

    @property
    def handle(self) -> Any:
        """What travels in a message for this id."""
        return self.ref

    def __format__(self, spec: str) -> str:
        text: str = self.ref.hex()
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)  # the message carries the ref itself beside it


class ActorId(int):
    """Ray's id of an actor, as a number, with the ``ray.actor.ActorHandle`` itself."""

    handle: ray.actor.ActorHandle[Any]
    arguments: Any = None  # of its constructor, to be kept as long as the handle

    @classmethod
    def of(cls, handle: ray.actor.ActorHandle[Any]) -> ActorId:
        self = cls.from_bytes(handle._actor_id.binary(), "big")
        self.handle = handle
        return self

    def __format__(self, spec: str) -> str:
        text: str = self.handle._actor_id.hex()
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


def id_of(handle: Any) -> RefId | ActorId:
    """The id for what came in a message: a Ray ref or a Ray handle."""
    if isinstance(handle, ray.ObjectRef):
        return RefId.of(handle)
    return ActorId.of(handle)
