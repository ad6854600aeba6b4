"""Packets between the supervisor, the zygote and the processes, with descriptors.

All sockets are unnamed pairs that were inherited: nothing listens, nobody can connect.

A packet may have any size. What is too large for the socket travels in a memfd, whose
descriptor goes ahead of the packet's own, and ``G`` is all that the socket carries.
``SupervisorLink`` of core/supervisor_link.hpp does the same.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence

from ... import _core

LARGE = _core.MAX_PACKET  # bytes of a packet; a longer one travels in a memfd
_BOXED = _core.NOTE_BOXED
_MAX_FDS = 8
# The kernel's memory for messages, or for descriptors on their way, is short for now.
SHORT = (errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)
_PAUSE_S = 0.001
_PATIENCE_S = 10.0


class OutOfDescriptorsError(OSError):
    """A packet waits that brings descriptors, and there is no room for them."""


def socket_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(
    sock: socket.socket, data: bytes, fds: Sequence[int] = (), *, block: bool = True
) -> None:
    """Raises OSError if the other side is gone, or a memfd cannot be made.

    Raises BlockingIOError if there is no room and ``block`` is False.
    """
    data, boxes = _pack(data)
    try:
        _send(sock, data, [*boxes, *fds], block)
    finally:
        _close_all(boxes)


def _send(sock: socket.socket, data: bytes, fds: Sequence[int], block: bool) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    flags = socket.MSG_NOSIGNAL | (0 if block else socket.MSG_DONTWAIT)
    until = time.monotonic() + _PATIENCE_S if block else 0.0
    while True:
        try:
            sock.sendmsg([data], rights if fds else [], flags)
        except OSError as error:
            if error.errno not in SHORT or (block and time.monotonic() > until):
                raise
            if not block:
                raise BlockingIOError(errno.EAGAIN, "no room for a packet") from error
            time.sleep(_PAUSE_S)
        else:
            return


def _pack(data: bytes) -> tuple[bytes, list[int]]:
    """What the socket carries, and the memfd, if any, that goes ahead of the rest."""
    if len(data) <= LARGE and data[:1] != _BOXED:
        return data, []
    return _BOXED, [_box(data)]


def _box(data: bytes) -> int:
    box = os.memfd_create("skate-packet", os.MFD_CLOEXEC)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(box, rest) :]
    except BaseException:
        os.close(box)
        raise
    return box


def _unbox(box: int) -> bytes:
    try:
        parts = []
        at, size = 0, os.fstat(box).st_size
        while at < size and (part := os.pread(box, size - at, at)):
            parts.append(part)
            at += len(part)
        return b"".join(parts)
    finally:
        os.close(box)


def receive(sock: socket.socket, *, block: bool = True) -> tuple[bytes, list[int]]:
    """One packet and its descriptors; ``b""`` when the other side is gone.

    Raises BlockingIOError if there is none and ``block`` is False, and
    OutOfDescriptorsError if it cannot be taken now: then it is still there.
    """
    flags = socket.MSG_PEEK | (0 if block else socket.MSG_DONTWAIT)
    fds = array.array("i")
    room = socket.CMSG_SPACE(_MAX_FDS * fds.itemsize)
    try:
        data, control, told, _ = sock.recvmsg(LARGE, room, flags)
    except ConnectionResetError:
        # It ended with something of ours unread. That is said once, ahead of what it
        # had sent before.
        try:
            data, control, told, _ = sock.recvmsg(LARGE, room, flags)
        except (ConnectionResetError, BlockingIOError):
            return b"", []
    except OSError as error:
        if error.errno not in SHORT:
            raise
        raise OutOfDescriptorsError(error.errno, os.strerror(error.errno)) from None
    if not data:
        return b"", []
    try:
        for level, kind, payload in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        if told & socket.MSG_CTRUNC:
            raise OutOfDescriptorsError(errno.EMFILE, os.strerror(errno.EMFILE))
        _drop_packet(sock)
        for fd in fds:
            os.set_inheritable(fd, False)
        if data == _BOXED and fds:
            data = _unbox(fds.pop(0))
        return data, list(fds)
    except BaseException:  # the handler of a signal may raise, too
        _close_all(fds)  # of a packet that stays they come again
        raise


def receive_first(sock: socket.socket) -> tuple[bytes, list[int]]:
    """What a process begins with: while it cannot be taken, this waits, for a while."""
    # Waited for before descriptors come with it: what interrupts this leaves none.
    with contextlib.suppress(OSError):  # what is wrong is found below
        sock.recv(1, socket.MSG_PEEK)
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return receive(sock)
        except OutOfDescriptorsError:
            if time.monotonic() > until:
                raise
            time.sleep(_PAUSE_S)


def _drop_packet(sock: socket.socket) -> None:
    """Take off the socket what was looked at."""
    try:
        sock.recv(1)  # the rest of the packet goes with it
    except ConnectionResetError:
        sock.recv(1)  # the other side has ended meanwhile, which is said once
    except OSError as error:
        if error.errno not in SHORT:
            raise
        raise OutOfDescriptorsError(error.errno, os.strerror(error.errno)) from None


class Outbox:
    """Packets for processes that do not read now: kept in order, never waited for."""

    def __init__(self) -> None:
        self._kept: dict[socket.socket, deque[tuple[bytes, list[int]]]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def send(self, sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
        """Raises OSError as ``send`` does."""
        # Now, while the caller hears of what fails: later, nobody would.
        data, boxes = _pack(data)
        try:
            if sock not in self._kept:
                try:
                    _send(sock, data, [*boxes, *fds], block=False)
                except BlockingIOError:
                    pass
                else:
                    return
            copies = _copies([*boxes, *fds])
            self._kept.setdefault(sock, deque()).append((data, copies))
        finally:
            _close_all(boxes)

    def flush(self) -> int:
        """Send what there is room for by now; for how many sockets some is left."""
        for sock, kept in list(self._kept.items()):
            try:
                while kept:
                    data, fds = kept[0]
                    _send(sock, data, fds, block=False)
                    kept.popleft()
                    _close_all(fds)
            except BlockingIOError:
                continue
            except OSError:  # it is gone
                pass
            self.forget(sock)
        return len(self._kept)

    def forget(self, sock: socket.socket) -> None:
        """Its process has ended: before the socket is closed."""
        for _, fds in self._kept.pop(sock, ()):
            _close_all(fds)


def _copies(fds: Iterable[int]) -> list[int]:
    copies: list[int] = []
    try:
        copies.extend(map(os.dup, fds))  # those before the one that fails are in it
    except OSError:
        _close_all(copies)
        raise
    return copies


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
