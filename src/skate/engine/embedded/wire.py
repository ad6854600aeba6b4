"""Packets between the supervisor, the zygote and the processes, with descriptors.

All sockets are unnamed pairs that were inherited: nothing listens, nobody can connect.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence

MAX_PACKET = 256 << 10  # what a receiver makes room for
_MAX_FDS = 8


def socket_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Raises OSError if the other side is gone."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    sock.sendmsg([data], rights if fds else [])


def receive(sock: socket.socket, *, block: bool = True) -> tuple[bytes, list[int]]:
    """One packet and its descriptors; ``b""`` when the other side is gone.

    Raises BlockingIOError if there is none and ``block`` is False.
    """
    flags = 0 if block else socket.MSG_DONTWAIT
    room = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
    try:
        data, control, _, _ = sock.recvmsg(MAX_PACKET, room, flags)
    except ConnectionResetError:
        return b"", []
    fds = array.array("i")
    for level, kind, payload in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    for fd in fds:
        os.set_inheritable(fd, False)
    return data, list(fds)
