"""``ray.util.collective.types``."""

from __future__ import annotations

from enum import Enum

__all__ = ["Backend", "ReduceOp"]


class ReduceOp(Enum):
    """What to do with the values of all ranks."""

    SUM = 0
    PRODUCT = 1
    MIN = 2
    MAX = 3


class Backend:
    """Names of backends. Whichever is asked for, skate's shared memory is used."""

    NCCL = "NCCL"
    GLOO = "GLOO"
    UNRECOGNIZED = "unrecognized"

    def __new__(cls, name: str) -> str:  # type: ignore[misc]  # as Ray has it
        """The name of the backend in capitals.

        Raises:
            ValueError: Ray has no such backend.
        """
        upper = name.upper().removeprefix("TORCH_")
        if upper not in (cls.NCCL, cls.GLOO):
            raise ValueError(f"unrecognized backend {name!r}: it is NCCL or GLOO.")
        return upper
