"""``ray.util.annotations``: marks that change nothing."""

from __future__ import annotations

from typing import Any

__all__ = ["Deprecated", "DeveloperAPI", "PublicAPI"]


def PublicAPI(*targets: Any, **options: Any) -> Any:  # noqa: N802 - Ray's name
    """Give the target back, or a decorator that does."""
    return targets[0] if targets else lambda target: target


DeveloperAPI = PublicAPI
Deprecated = PublicAPI
