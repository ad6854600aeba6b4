"""Ray's ``ray.actor``: the types of actors, and ``exit_actor``."""

from __future__ import annotations

from typing import NoReturn

from ._actor import ActorClass as ActorClass
from ._actor import ActorHandle as ActorHandle
from ._actor import ActorMethod as ActorMethod
from ._runtime import current
from .engine.actor_methods import ActorExit

__all__ = [
    "ActorClass",
    "ActorHandle",
    "ActorMethod",
    "exit_actor",
]


def exit_actor() -> NoReturn:
    """End the actor in whose method it is called, on purpose: it is not restarted.

    Calls that run in other threads or coroutines of the actor still end, and its
    ``atexit`` handlers run. The caller of this call, and of those that have not
    started, gets ActorDiedError.

    Raises:
        TypeError: called outside of an actor.
    """
    if not current().context().actor_id:
        raise TypeError(
            "exit_actor ends the actor that calls it, and this is not code of an "
            "actor. To end an actor from outside, use skate.kill(handle)."
        )
    raise ActorExit
