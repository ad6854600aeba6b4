"""What a session on Ray tells of itself; the rest is refused by name."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any, NoReturn

import ray

from ...exceptions import EngineError
from ..protocol import FunctionSummary
from . import statistics, tasks
from .tasks import ENDED, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .engine import RayEngine

_PROFILING = "RAY_PROFILING"


class RayObserver:
    """See ``engine.protocol.Observer``."""

    def __init__(self, engine: RayEngine) -> None:
        self._engine = engine

    def session(self) -> dict[str, Any]:
        now = statistics.collect()
        total, free = ray.cluster_resources(), ray.available_resources()
        return {
            "engine": self._engine.name,
            "seconds": (time.time_ns() - self._engine.began_ns) / 1e9,
            "cpus": int(total.get("CPU", 0)),
            "cpus_used": round(total.get("CPU", 0) - free.get("CPU", 0)),
            "workers": now["workers"],
            "store_bytes": now["store_bytes"],
            "store_limit": int(total.get("object_store_memory", 0)),
            "ended": self._engine.has_died(),
        }

    def functions(self) -> dict[str, FunctionSummary]:
        found = tasks.by_name(tasks.calls(self._engine.began_ns))
        return {name: _summary(calls) for name, calls in found.items()}

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


def _summary(calls: Sequence[tasks.Call]) -> FunctionSummary:
    stages = [call.stage for call in calls]
    finished = sum(stage in ENDED for stage in stages)
    running = stages.count(Stage.RUNNING)
    durations = sorted(call.seconds for call in calls if call.stage in ENDED)
    return FunctionSummary(
        finished=finished,
        failed=stages.count(Stage.FAILED),
        running=running,
        queued=len(calls) - finished - running,
        total_s=sum(durations),
        cpu_s=math.nan,
        p50_s=_quantile(durations, 0.5),
        p99_s=_quantile(durations, 0.99),
        argument_bytes=math.nan,
        result_bytes=math.nan,
    )


def _quantile(ascending: Sequence[float], share: float) -> float:
    return ascending[int(share * (len(ascending) - 1))] if ascending else 0.0


def _refuse(what: str, instead: str) -> NoReturn:
    raise EngineError(
        f"{what} is not on engine='ray': what runs on the cluster's machines is known "
        f"to Ray alone. Use {instead}."
    )
