"""``ray.util.serialization``."""

from skate.util.serialization import deregister_serializer, register_serializer

__all__ = ["deregister_serializer", "register_serializer"]
