"""``ray.util.multiprocessing``."""

from multiprocessing import JoinableQueue

from skate.util.multiprocessing import Pool, TimeoutError  # noqa: A004

__all__ = ["JoinableQueue", "Pool", "TimeoutError"]
