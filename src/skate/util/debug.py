"""``log_once`` and what sets it, as in ``ray.util.debug``. Each process has its own."""

from __future__ import annotations

import time

__all__ = [
    "disable_log_once_globally",
    "enable_periodic_logging",
    "log_once",
    "reset_log_once",
]

_PERIOD_S = 60.0


class _Settings:
    disabled = False
    periodic = False
    last_logged = 0.0


_logged: set[str] = set()


def log_once(key: str) -> bool:
    """True for the first call with ``key`` in this process, then False.

    >>> if log_once("slow-env"):
    ...     print("the env is slow")
    the env is slow
    """
    if _Settings.disabled:
        return False
    now = time.monotonic()
    if key not in _logged:
        _logged.add(key)
        _Settings.last_logged = now
        return True
    if _Settings.periodic and now - _Settings.last_logged > _PERIOD_S:
        _logged.clear()
        _Settings.last_logged = now
    return False


def disable_log_once_globally() -> None:
    """From now on, ``log_once`` is False in this process."""
    _Settings.disabled = True


def enable_periodic_logging() -> None:
    """Let ``log_once`` be True again for a key when a minute has gone by."""
    _Settings.periodic = True


def reset_log_once(key: str | None = None) -> None:
    """Forget ``key``, or all keys."""
    if key is None:
        _logged.clear()
    else:
        _logged.discard(key)
