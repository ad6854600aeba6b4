"""``ray.util.check_serialize``."""

from skate.util.serialization import FailureTuple, inspect_serializability

__all__ = ["FailureTuple", "inspect_serializability"]
