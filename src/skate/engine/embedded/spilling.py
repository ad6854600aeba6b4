"""Where the object store spills to when it is full: one directory, unlinked files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from ...exceptions import EngineError

DIRECTORY = "SKATE_SPILL_DIR"
LIMIT = "SKATE_SPILL_LIMIT"
_NO_LIMIT = 1 << 62  # no disk is so large, and sums with it fit into 64 bits
_SHARE_OF_FREE = 0.9  # of the file system, at the start of the session
_IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}
_ESCAPED = re.compile(rb"\\([0-7]{3})")


class SpillPlace(NamedTuple):
    """``directory`` None, or ``limit`` 0: nothing is spilled."""

    directory: str | None
    limit: int  # bytes, of all processes together


def choose() -> SpillPlace:
    """The place that the environment names, else a temporary directory on a disk.

    ``SKATE_SPILL_DIR`` may be empty: then nothing is spilled. ``SKATE_SPILL_LIMIT`` is
    bytes.
    """
    named = os.environ.get(DIRECTORY)
    if named == "":
        return SpillPlace(None, 0)
    if named is not None:
        _check(named)
        directory: str | None = named
    else:
        directory = next((path for path in _temporary() if is_on_disk(path)), None)
    if directory is None:
        return SpillPlace(None, 0)
    return SpillPlace(os.path.abspath(directory), _limit(directory))


def _temporary() -> list[str]:
    import tempfile  # it is slow to import

    try:
        return list(dict.fromkeys((tempfile.gettempdir(), "/var/tmp")))
    except FileNotFoundError:  # it has tried /var/tmp, too: nothing can be written
        return []


def open_file(directory: str) -> int:
    """A new file without a name, readable and writable; raises OSError."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(directory, os.O_TMPFILE | flags, 0o600)
    except OSError:  # some file systems cannot do that
        import tempfile

        fd, path = tempfile.mkstemp(prefix="skate-spill-", dir=directory)
        os.unlink(path)
        return fd


def is_on_disk(path: str) -> bool:
    """Whether ``path`` can be written to, and is not on a file system in memory."""
    if not os.access(path, os.W_OK | os.X_OK):
        return False
    return _file_system(os.path.realpath(path)) not in _IN_MEMORY


def _file_system(path: str) -> str:
    """The type of the file system that ``path`` is on, as the kernel names it."""
    try:
        with open("/proc/self/mounts", "rb") as file:
            return file_system_of(path, file)
    except OSError:
        return ""


def file_system_of(path: str, mounts: Iterable[bytes]) -> str:
    """The same by the lines of ``mounts``; their paths are bytes, in any encoding."""
    inner = os.fsencode(path)
    found, kind = b"", b""
    for line in mounts:
        mount, name = line.split(b" ")[1:3]
        # Octal is what would end a field or a line, and the backslash itself.
        point = _ESCAPED.sub(lambda octal: bytes([int(octal[1], 8) & 0xFF]), mount)
        inside = inner == point or inner.startswith(point.rstrip(b"/") + b"/")
        if inside and len(point) >= len(found):  # later mounts hide earlier ones
            found, kind = point, name
    return os.fsdecode(kind)


def _check(directory: str) -> None:
    try:
        os.close(open_file(directory))
    except OSError as error:
        raise EngineError(
            f"{DIRECTORY}={directory!r}: no file can be made there: {error.strerror}. "
            "Name a directory on a local disk, or leave it empty to spill nothing."
        ) from None


def _limit(directory: str) -> int:
    text = os.environ.get(LIMIT)
    if text is None:
        status = os.statvfs(directory)
        return int(status.f_bavail * status.f_frsize * _SHARE_OF_FREE)
    try:
        limit = int(text)
    except ValueError:
        limit = -1
    if limit < 0:
        raise EngineError(f"{LIMIT}={text!r} must be bytes, an integer of 0 or more.")
    return min(limit, _NO_LIMIT)
