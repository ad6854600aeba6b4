"""The ids that skate's refs carry, each holding Ray's own ref or handle.

``ObjectRef._id`` is an int on other engines. On this one it holds what Ray counts, so a
skate ref lives exactly as long as its Ray ref, and there is no table to keep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
import ray.actor

from ..._ref import ObjectRef

if TYPE_CHECKING:
    from ..._ref import RefCounter
    from .streams import Stream


CANCELLED, KILLED = 1, 2


def new_ref(ref: ray.ObjectRef, counter: RefCounter) -> ObjectRef[Any]:
    """skate's ref for one of Ray's."""
    # As ObjectRef._new does: this is called for every call.
    made: ObjectRef[Any] = object.__new__(ObjectRef)
    made._id = RefId(ref)  # type: ignore[assignment]  # no int
    made._counter = counter
    return made


class RefId:
    """Ray's ref, where other engines have a number. Made once for every call."""

    __slots__ = ("cancelled", "ref", "stream")

    def __init__(self, ref: ray.ObjectRef, stream: Stream | None = None) -> None:
        self.ref = ref
        self.stream = stream  # if it is the end of one that is read here
        self.cancelled = 0  # by this process; KILLED: with force

    @property
    def handle(self) -> Any:
        """What travels in a message for this id."""
        return self.ref

    @property
    def key(self) -> bytes:
        """What stands for it in a pickle; the message carries the ref beside it."""
        data: bytes = self.ref.binary()
        return data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RefId) and self.ref == other.ref

    def __hash__(self) -> int:
        return hash(self.ref)

    def __format__(self, spec: str) -> str:
        text: str = self.ref.hex()
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (self.key,)


class ActorId(int):
    """Ray's id of an actor, as a number, with the ``ray.actor.ActorHandle`` itself."""

    handle: ray.actor.ActorHandle[Any]
    arguments: Any = None  # of its constructor, to be kept as long as the handle
    calls: dict[str, Any]  # how the engine calls each method that was called here

    @classmethod
    def of(cls, handle: ray.actor.ActorHandle[Any]) -> ActorId:
        self = cls.from_bytes(handle._actor_id.binary(), "big")
        self.handle = handle
        self.calls = {}
        return self

    def __format__(self, spec: str) -> str:
        text: str = self.handle._actor_id.hex()
        return text

    @property
    def key(self) -> int:
        """What stands for it in a pickle; the message carries the handle beside it."""
        return int(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


def id_of(handle: Any) -> RefId | ActorId:
    """The id for what came in a message: a Ray ref or a Ray handle."""
    if isinstance(handle, ray.ObjectRef):
        return RefId(handle)
    return ActorId.of(handle)
