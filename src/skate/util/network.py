"""``get_node_ip_address``."""

from __future__ import annotations

__all__ = ["get_node_ip_address"]


def get_node_ip_address(address: str = "") -> str:
    """The address at which this machine reaches itself: skate opens no other.

    Args:
        address: accepted; of Ray's cluster.
    """
    return "127.0.0.1"
