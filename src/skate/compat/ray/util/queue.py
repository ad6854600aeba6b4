"""``ray.util.queue``."""

from skate.util.queue import Empty, Full, Queue

__all__ = ["Empty", "Full", "Queue"]
