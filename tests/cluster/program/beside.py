"""A module beside the script, which workers on other hosts import too."""

from __future__ import annotations

import ray


def square(x: int) -> int:
    return x * x


def address() -> str:
    """Of the host on which it is called."""
    found: str = ray.util.get_node_ip_address()
    return found
