"""Raises in skate's own code, wherever the handler of a signal could run.

Python runs handlers when a function is entered, after a call of what is a class or
written in C, and where a loop begins again. A program that strikes at each of these
places in turn meets in a second what signals meet once in a million calls.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

import skate

SKATE = str(Path(skate.__file__).parent)


class Struck(BaseException):
    """What the handler raises; nobody takes it for an error of a call's own."""


class Strike:
    """While it is open, raises ``Struck`` at place number ``number``, once.

    Only in files with one of those endings.
    """

    def __init__(self, number: int, files: tuple[str, ...]) -> None:
        self._files = files
        self._left = number
        self._last: dict[FrameType, str] = {}  # the instruction that a frame was at
        self.where = ""  # it has struck

    def __enter__(self) -> None:
        if not self.where:
            sys.settrace(self._enter)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.settrace(None)
        self._last.clear()

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(SKATE) or not file.endswith(self._files):
            return None
        if _in_finalizer(frame):
            return None
        if frame.f_back in self._last and not frame.f_code.co_name.startswith("__"):
            self._last[frame.f_back] = ""
        self._last[frame] = "RESUME"
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode":
            before = self._last.get(frame, "")
            self._last[frame] = _names(frame.f_code).get(frame.f_lasti, "")
            if before.startswith(("CALL", "JUMP_BACKWARD", "RESUME")):
                self._may_strike(frame)
        elif event == "return":
            self._last.pop(frame, None)
        return self._step

    def _may_strike(self, frame: FrameType) -> None:
        if self._left == 0:
            self.where = f"{frame.f_code.co_name}, line {frame.f_lineno}"
            sys.settrace(None)
            raise Struck(self.where)
        self._left -= 1


def strikes(files: tuple[str, ...] = (".py",)) -> Iterator[Strike]:
    """One after the other, until there is no such place any more."""
    for number in range(1000):
        strike = Strike(number, files)
        yield strike
        if not strike.where:
            return
    raise AssertionError("there is no end of places")


def _in_finalizer(frame: FrameType | None) -> bool:
    """What raises there is not the program's."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


@cache
def _names(code: CodeType) -> dict[int, str]:
    return {found.offset: found.opname for found in dis.get_instructions(code)}
