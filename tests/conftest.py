"""What every test gets: a check that it left nothing behind."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from polling import wait_until

# Tests do one thing after the other on purpose, and warnings are errors.
os.environ.setdefault("SKATE_ADVICE", "0")

import skate

if TYPE_CHECKING:
    from collections.abc import Iterator


def _children() -> set[str]:
    found: set[str] = set()
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended
            found.update((thread / "children").read_text().split())
    return found


def _descriptors() -> dict[str, str]:
    """Open descriptors of the kinds that an engine opens; not ordinary files."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(link)  # not always a path
        except FileNotFoundError:  # the one that lists the others
            continue
        if target.startswith(("socket:", "pipe:", "anon_inode:", "/memfd:")):
            found[link.name] = target
    return found


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After a test: no child process, thread or descriptor that was not there."""
    children, threads = _children(), set(threading.enumerate())
    descriptors = _descriptors()
    yield
    skate.shutdown()

    def left() -> list[object]:
        return [
            *(_children() - children),
            *(set(threading.enumerate()) - threads),
            *(_descriptors().items() - descriptors.items()),
        ]

    if left():
        gc.collect()
    assert wait_until(lambda: not left()), left()
