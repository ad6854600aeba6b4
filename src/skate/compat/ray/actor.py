"""``ray.actor``."""

from skate import ActorClass, ActorHandle, ActorMethod, method
from skate.actor import exit_actor
from skate.exceptions import ActorClassInheritanceException

__all__ = [
    "ActorClass",
    "ActorClassInheritanceException",
    "ActorHandle",
    "ActorMethod",
    "exit_actor",
    "method",
]
