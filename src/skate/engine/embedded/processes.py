"""How processes of a session are named, and why they ended."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

SUPERVISOR = "skate-superviso"  # as the kernel cuts it

Kind = Literal["driver", "pool", "lease", "actor"]


@dataclass(frozen=True, slots=True)
class Proc:
    """A process of the session; an index has a new epoch for each user."""

    index: int
    epoch: int


class Cause(IntEnum):
    """Why a process ended: ``DeathCause`` of core/message.hpp."""

    UNKNOWN = 0
    EXITED = 1  # detail: exit status
    SIGNALED = 2  # detail: signal number
    KILLED = 3
    OUT_OF_SCOPE = 4
    CONSTRUCTOR_FAILED = 5  # detail: the process, for the text that it left
    ACTOR_EXIT = 6
    OWNER_ENDED = 7
    RUNTIME_ENV_FAILED = 8  # detail: as above
    OUT_OF_MEMORY = 16  # detail: as above


def set_name(name: str) -> None:
    """What ps, top and a debugger show as the name of this process."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write(name)
