"""An optional guard: ends a task before the kernel ends whatever it likes.

Off unless ``SKATE_MEMORY_MONITOR`` is a share of the memory, such as 0.95. Above it,
the worker that runs the newest task is ended: of tasks that may be tried again first,
since they lose only time. Actors, whose state would be lost, and the driver are left
alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ...exceptions import EngineError
from .. import limits

VARIABLE = "SKATE_MEMORY_MONITOR"
PERIOD_S = 0.25
_PAGE = os.sysconf("SC_PAGE_SIZE")


class RunningTask(NamedTuple):
    pid: int
    name: str
    since: int  # when it began, in nanoseconds of the monotonic clock
    may_retry: bool


def threshold(environment: Mapping[str, str] = os.environ) -> float | None:
    """The share of the memory above which tasks are ended; None: never."""
    text = environment.get(VARIABLE, "")
    if not text:
        return None
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise EngineError(
            f"{VARIABLE}={text!r} must be a share of the memory, such as 0.95."
        )
    return share


def choose(tasks: Sequence[RunningTask]) -> RunningTask | None:
    """The task to end: the newest of those that may be tried again, else the newest."""
    return max(tasks, key=lambda task: (task.may_retry, task.since), default=None)


def describe(task: RunningTask, threshold: float) -> str:
    return (
        f"task {task.name} was ended by skate's memory monitor, because "
        f"{limits.memory_use():.0%} of the memory were in use, more than the "
        f"{threshold:.0%} of {VARIABLE}. Its process {task.pid} used "
        f"{resident_bytes(task.pid) >> 20} MiB."
    )


def resident_bytes(pid: int) -> int:
    """Memory of a process's own: without what it shares, as the store."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
    except OSError:
        return 0
    return (resident - shared) * _PAGE
