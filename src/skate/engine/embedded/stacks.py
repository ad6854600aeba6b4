"""Python stacks of other processes: on a signal, each writes its own to a file.

faulthandler does the writing, in a signal handler, in a copy of the process that lives
no longer: no GIL is needed, so a process that hangs in C code answers too, and what a
walk over moving frames may do wrong ends nothing but the copy. The file is a memfd,
which others of the same user open by the process's entry in /proc.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
import time
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from ... import _core
from ..frames import is_of_library, users_part

if TYPE_CHECKING:
    from collections.abc import Iterable

# A real-time signal that hardly anybody uses; never sent to a process that has not said
# that it handles it.
SIGNAL = signal.SIGRTMAX - 2

_PATIENCE_S = 2.0
_POLL_S = 0.002
_ESCAPED = re.compile(
    r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U(00(?:0[0-9a-f]|10)[0-9a-f]{4}))"
)
_FRAME = re.compile(r'  File "(.*)", line (?:\d+|\?\?\?) in ')


def answer_signals(node: _core.Node) -> int:
    """From now on this process writes its stacks when asked; the file's descriptor."""
    fd = os.memfd_create("skate-stacks")
    faulthandler.register(SIGNAL, fd, all_threads=True)
    _core.announce_stacks(node, SIGNAL, fd)
    return fd


def stop_answering(fd: int) -> None:
    """The handler stays: a late signal's default would end the process."""
    _core.forget_stacks()
    os.close(fd)


def read_stacks(
    statistics: _core.Statistics, indices: Iterable[int] | None = None
) -> dict[int, str]:
    """The stacks of processes, by their index; without those that do not answer."""
    wanted = None if indices is None else set(indices)
    asked: dict[int, dict[str, Any]] = {}
    for process in statistics.processes():
        index = process["index"]
        if process["stack_fd"] < 0 or (wanted is not None and index not in wanted):
            continue
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process["pid"], SIGNAL)
            asked[index] = process
    found: dict[int, str] = {}
    deadline = time.monotonic() + _PATIENCE_S
    while asked and time.monotonic() < deadline:
        now = {process["index"]: process for process in statistics.processes()}
        for index, before in list(asked.items()):
            after = now.get(index)
            if after is None or after["pid"] != before["pid"]:
                del asked[index]
            elif after["stack_count"] != before["stack_count"]:
                if after["stack_end"] == before["stack_end"]:  # the copy met a fault
                    asked[index] = after
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(after["pid"], SIGNAL)
                    continue
                del asked[index]
                with contextlib.suppress(OSError):
                    found[index] = _read(before, after)
        if asked:
            time.sleep(_POLL_S)
    return found


def _read(before: dict[str, Any], after: dict[str, Any]) -> str:
    start = before["stack_end"] if before["stack_end"] <= after["stack_end"] else 0
    with open(f"/proc/{after['pid']}/fd/{after['stack_fd']}", "rb") as file:
        file.seek(start)
        text = file.read(after["stack_end"] - start)
    return text.decode(errors="replace")


def users_frames(text: str) -> list[list[str]]:
    """Of each thread that is in the user's code: its frames, innermost first."""
    threads: list[list[str]] = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("  File ")]
        frames = [(_file_of(line), line.strip()) for line in lines]
        users = users_part(frames, itemgetter(0))
        if not all(is_of_library(file) for file, _ in users):
            threads.append([line for _, line in users])
    return threads


def _file_of(line: str) -> str:
    """The file's name in a line of faulthandler's, which writes ASCII only."""
    match = _FRAME.match(line)
    return _ESCAPED.sub(_unescape, match[1]) if match else ""


def _unescape(escape: re.Match[str]) -> str:
    return chr(int(escape[escape.lastindex or 0], 16))
