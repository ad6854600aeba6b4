"""How processes of a session are named, and why they ended."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import Literal, NamedTuple

from ... import _core

SUPERVISOR = "skate-superviso"  # as the kernel cuts it
RETIRE = signal.SIGRTMIN + 8  # tells a leased worker that it gets no more tasks

Kind = Literal["driver", "pool", "lease", "actor"]


class Proc(NamedTuple):
    """A process of the session: its place in the directory, and which user of that.

    A place is used again soon after a death; a name, both together, never is.
    """

    index: int  # type: ignore[assignment]  # not what a tuple calls so
    epoch: int

    @property
    def packed(self) -> int:
        """The same as one number, for where there is room for one."""
        return self.index | self.epoch << 16


# ``detail`` of EXITED is the status, of SIGNALED the signal; of those for which the
# supervisor keeps a text, the note's number, which is never zero.
Cause = _core.DeathCause
Forget = _core.Forget
PLACEMENT_REMOVED = 0  # instead of a note's number, of a task that is refused


def set_name(name: str) -> None:
    """What ps, top and a debugger show as the name of this process."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write(name)


def say(text: str) -> None:
    """On standard error, which may be gone: a terminal, or who reads a pipe."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(f"skate: {text}", file=sys.stderr, flush=True)
