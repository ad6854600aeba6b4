"""Advice about the classic mistakes, once for each place in the user's code."""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING

from ..exceptions import PerformanceAdvice
from .frames import is_of_skate

if TYPE_CHECKING:
    from types import FrameType

LARGE_CODE_BYTES = 1 << 20
_MIB = 1 << 20

_given: set[tuple[str, str, int]] = set()


def wanted() -> bool:
    return os.environ.get("SKATE_ADVICE", "1") != "0"


def get_in_a_loop(times: int) -> None:
    _advise(
        "loop",
        f"the last {times} tasks were each waited for before the next one was "
        "started, so nothing ran side by side. Start them all, then get the list: "
        "skate.get([f.remote(x) for x in xs]). If each needs the result before, call "
        "the function itself, or use an actor.",
    )


def same_large_argument(what: str, size: int) -> None:
    _advise(
        "argument",
        f"the same {what} of {size / _MIB:.1f} MiB was copied into the store for "
        "several calls. Put it there once, and pass the ref: ref = skate.put(x); "
        "f.remote(ref).",
    )


def large_code(what: str, size: int) -> None:
    _advise(
        "code",
        f"{what} carries {size / _MIB:.1f} MiB with it: data that it refers to by "
        "name. Every worker that runs it reads all of that. Pass the data as an "
        "argument, as a ref from skate.put.",
    )


def blocked_in_a_coroutine() -> None:
    import asyncio

    # Public only as get_running_loop, which raises where there is none.
    if asyncio._get_running_loop() is None:
        return
    _advise(
        "async",
        "skate.get or skate.wait blocks the event loop of this async actor: none of "
        "its other calls can go on. Write 'await ref', or asyncio.gather(*refs).",
    )


def _advise(kind: str, text: str) -> None:
    frame = _users_frame()
    if frame is None:
        return
    place = frame.f_code.co_filename, frame.f_lineno
    if (kind, *place) in _given:
        return
    _given.add((kind, *place))
    warnings.warn_explicit(
        f"{text} (SKATE_ADVICE=0 turns such advice off.)",
        PerformanceAdvice,
        *place,
        module=frame.f_globals.get("__name__"),
    )


def _users_frame() -> FrameType | None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_of_skate(frame.f_code.co_filename):
        frame = frame.f_back
    return frame
