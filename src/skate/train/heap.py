"""The heap of a rank's process, which keeps the memory that each step frees."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_MOST_MMAP_THRESHOLD = 32 << 20  # glibc takes no more


def keep_freed_memory() -> None:
    """Let malloc keep what is freed, for this whole process; glibc only.

    A step frees its gradients and the next one makes the same ones. By default glibc
    gives them back to the system in between, and the system zeroes every page anew:
    90 MB of gradients cost more than the step that uses them.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    mallopt(_TRIM_THRESHOLD, -1)
    mallopt(_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD)
