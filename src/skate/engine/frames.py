"""Whose a stack frame is: the user's, skate's or the standard library's.

The place of the package decides, never its name: a user's project may lie in a folder
that is called skate, and skate in one that is called anything.
"""

from __future__ import annotations

import functools
import os
import signal
import traceback
from itertools import dropwhile, takewhile
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

F = TypeVar("F")

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_ENGINE = (f"{PACKAGE}engine{os.sep}", f"{PACKAGE}_")
_LIBRARY = os.path.dirname(os.__file__) + os.sep
_INSTALLED = tuple(
    f"{_LIBRARY}{name}{os.sep}" for name in ("site-packages", "dist-packages")
)


def is_of_skate(filename: str) -> bool:
    """Code of the package, the building blocks included."""
    return filename.startswith(PACKAGE)


def is_of_engine(filename: str) -> bool:
    """Code that runs the user's: an engine, or what is between it and a public call.

    Not the building blocks: a run of ``skate.rl`` is made of their frames.
    """
    return filename.startswith(_ENGINE)


def is_of_handler(error: BaseException) -> bool:
    """Whether a signal's handler raised it, or called what did."""
    ran = {f.f_code for f, _ in traceback.walk_tb(error.__traceback__)}
    ran = {code for code in ran if not is_of_engine(code.co_filename)}
    if not ran:  # to ask for all handlers takes some time
        return False
    handlers = (signal.getsignal(number) for number in signal.valid_signals())
    return any(_code_of(handler) in ran for handler in handlers if callable(handler))


def _code_of(handler: Callable[..., object]) -> object:
    while isinstance(handler, functools.partial):
        handler = handler.func
    code = getattr(handler, "__code__", None)
    return code or getattr(type(handler).__call__, "__code__", None)


def is_of_library(filename: str) -> bool:
    """Code of Python itself; not of installed packages."""
    return filename.startswith(_LIBRARY) and not filename.startswith(_INSTALLED)


def users_part(stack: Iterable[F], file_of: Callable[[F], str]) -> list[F]:
    """The user's frames of a stack, innermost first.

    They lie between a call of skate's that the code is in, if any, and the engine that
    called the code.
    """

    def is_engines(frame: F) -> bool:
        return is_of_engine(file_of(frame))

    outside = dropwhile(is_engines, stack)
    return list(takewhile(lambda frame: not is_engines(frame), outside))
