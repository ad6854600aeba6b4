"""``ray.util.debug``."""

from skate.util.debug import (
    disable_log_once_globally,
    enable_periodic_logging,
    log_once,
    reset_log_once,
)

__all__ = [
    "disable_log_once_globally",
    "enable_periodic_logging",
    "log_once",
    "reset_log_once",
]
