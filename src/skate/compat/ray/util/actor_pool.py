"""``ray.util.actor_pool``."""

from skate.util.actor_pool import ActorPool

__all__ = ["ActorPool"]
