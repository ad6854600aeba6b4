"""What a session on Ray tells of itself: its timeline. The rest is refused by name."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, NoReturn

from ...exceptions import EngineError

if TYPE_CHECKING:
    from ..protocol import FunctionSummary

_PROFILING = "RAY_PROFILING"


class RayObserver:
    """See ``engine.protocol.Observer``."""

    def session(self) -> dict[str, Any]:
        _refuse("summary", "'ray summary tasks', or its dashboard")

    def functions(self) -> dict[str, FunctionSummary]:
        _refuse("summary", "'ray summary tasks', or its dashboard")

    def trace(self) -> dict[str, Any]:
        """Ray's own events, which come about a second after what they tell of."""
        if os.environ.get(_PROFILING) != "1":
            raise EngineError(
                "on engine='ray', skate.timeline writes Ray's own events, and Ray "
                f"records none unless {_PROFILING}=1 is in the environment of nodes "
                "and of the program before they start."
            )
        from ray._private.state import state

        return {"traceEvents": state.chrome_tracing_dump()}

    def stacks(self) -> str:
        _refuse("skate.debug.stacks", "'ray stack'")

    def span(self, name: str, start_ns: int) -> None:
        """Nothing: Ray's timeline has its own spans alone."""

    def now(self) -> int:
        return time.monotonic_ns()


def _refuse(what: str, instead: str) -> NoReturn:
    raise EngineError(
        f"{what} is not on engine='ray': what runs on the cluster's machines is known "
        f"to Ray alone. Use {instead}."
    )
