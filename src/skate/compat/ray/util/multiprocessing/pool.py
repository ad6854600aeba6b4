"""``ray.util.multiprocessing.pool``."""

from skate.util.multiprocessing import (
    AsyncResult,
    IMapIterator,
    Pool,
    TimeoutError,  # noqa: A004
)

__all__ = ["AsyncResult", "IMapIterator", "Pool", "TimeoutError"]
