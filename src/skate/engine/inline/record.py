"""What the inline engine remembers of its calls: counters, and the last events."""

from __future__ import annotations

import faulthandler
import os
import tempfile
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .. import timeline
from ..protocol import FunctionSummary
from ..timeline import Event

if TYPE_CHECKING:
    from .engine import InlineEngine
    from .units import Call

_MAX_EVENTS = 32_768
_MAX_TASKS = 10_000
_MAX_DURATIONS = 4096  # of one function: the percentiles are those of the last ones


class _Function:
    def __init__(self) -> None:
        self.submitted = 0
        self.started = 0
        self.finished = 0
        self.failed = 0
        self.total_ns = 0
        self.cpu_ns = 0
        self.argument_bytes = 0
        self.result_bytes = 0
        self.durations: deque[int] = deque(maxlen=_MAX_DURATIONS)

    def percentile(self, share: float) -> float:
        if not self.durations:
            return 0.0
        ordered = sorted(self.durations)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e-9


@dataclass(slots=True)
class _Task:
    """One attempt of one call."""

    call_id: int
    name: str
    kind: str
    actor_id: int
    made: int  # ms since 1970, as the other times
    attempt: int = 0
    state: str = ""  # of those that have begun
    start: int | None = None
    end: int | None = None

    def row(self) -> dict[str, Any]:
        return {
            "task_id": f"{self.call_id:032x}",
            "attempt_number": self.attempt,
            "name": self.name,
            "state": self.state,
            "actor_id": f"{self.actor_id:032x}" if self.actor_id else None,
            "type": self.kind,
            "func_or_class_name": self.name,
            "worker_id": f"{self.actor_id or 1:032x}" if self.start else None,
            "worker_pid": os.getpid() if self.start else None,
            "error_type": (
                "TASK_EXECUTION_EXCEPTION" if self.state == "FAILED" else None
            ),
            "creation_time_ms": self.made,
            "start_time_ms": self.start,
            "end_time_ms": self.end,
        }


class Record:
    """Filled by the engine as calls come and go; see ``engine.protocol.Observer``."""

    def __init__(self, engine: InlineEngine) -> None:
        self._engine = engine
        self._began = time.monotonic_ns()
        self._functions: dict[str, _Function] = {}
        self._events: deque[Event] = deque(maxlen=_MAX_EVENTS)
        self._threads: dict[int, int] = {}
        # By id and attempt; of a call, the last is the current one.
        self._tasks: OrderedDict[int, list[_Task]] = OrderedDict()

    # The engine's -----------------------------------------------------------------

    def submitted(self, call: Call) -> None:
        self._function(call.label).submitted += 1
        now = self.now()
        self._add("submit", call.label, now, now, call.trace_id)
        kind = "ACTOR_TASK" if call.actor_id else "NORMAL_TASK"
        if call.label.endswith(".__init__"):
            kind = "ACTOR_CREATION_TASK"
        task = _Task(call.trace_id, call.label, kind, call.actor_id, _wall_ms())
        self._tasks[call.trace_id] = [task]
        if len(self._tasks) > _MAX_TASKS:
            self._tasks.popitem(last=False)

    def started(self, call: Call, argument_bytes: int) -> tuple[int, int]:
        function = self._function(call.label)
        function.started += 1
        function.argument_bytes += argument_bytes
        self._begin_attempt(call)
        return self.now(), time.thread_time_ns()

    def ended(
        self, call: Call, since: tuple[int, int] | None, failed: bool, size: int
    ) -> None:
        function = self._function(call.label)
        function.failed += failed
        for task in self._tasks.get(call.trace_id, ())[-1:]:
            task.state = "FAILED" if failed else "FINISHED"
            task.end = _wall_ms()
        if since is None:  # an argument was an error, or it was stopped before
            function.submitted -= 1
            return
        # Read within the other clock's interval: no call computes longer than it runs.
        cpu_ns = time.thread_time_ns() - since[1]
        now = self.now()
        function.finished += 1
        function.total_ns += now - since[0]
        function.cpu_ns += cpu_ns
        function.result_bytes += size
        function.durations.append(now - since[0])
        self._add("run", call.label, since[0], now, call.trace_id)

    def _begin_attempt(self, call: Call) -> None:
        attempts = self._tasks.get(call.trace_id)
        if attempts is None:
            return
        task = attempts[-1]
        if task.start is not None:  # it failed, and is tried again
            task.state, task.end = "FAILED", _wall_ms()
            task = replace(task, attempt=task.attempt + 1, end=None)
            attempts.append(task)
        task.state, task.start = "RUNNING", _wall_ms()

    def got(self, tasks: list[int], since: int) -> None:
        self._add("get", "get", since, self.now(), len(tasks))
        for task in tasks:
            self._add("got", "", since, since, task)

    def _function(self, name: str) -> _Function:
        found = self._functions.get(name)
        if found is None:
            found = self._functions[name] = _Function()
        return found

    def _add(self, kind: str, name: str, start: int, end: int, number: int) -> None:
        ident = threading.get_ident()
        thread = self._threads.setdefault(ident, len(self._threads))
        process = 1, os.getpid()
        self._events.append(Event(process, kind, thread, name, start, end, number))

    # The observer's ---------------------------------------------------------------

    def session(self) -> dict[str, Any]:
        resources = self._engine.resources
        total = resources.total()["CPU"]
        with self._engine.lock:
            used = self._engine.objects.statistics()["store_bytes"]
        return {
            "engine": "inline",
            "seconds": (self.now() - self._began) * 1e-9,
            "cpus": int(total),
            "cpus_used": int(total - resources.available()["CPU"]),
            "workers": len(self._engine.baton.workers),
            "store_bytes": used,
            "store_limit": self._engine.config.object_store_memory or 0,
            "ended": False,
        }

    def tasks(self) -> list[dict[str, Any]]:
        """One row for each attempt; without a state if it has not begun."""
        return [task.row() for tasks in self._tasks.values() for task in tasks]

    def functions(self) -> dict[str, FunctionSummary]:
        return {
            name: FunctionSummary(
                finished=f.finished,
                failed=f.failed,
                running=f.started - f.finished,
                queued=f.submitted - f.started,
                total_s=f.total_ns * 1e-9,
                cpu_s=f.cpu_ns * 1e-9,
                p50_s=f.percentile(0.5),
                p99_s=f.percentile(0.99),
                argument_bytes=f.argument_bytes,
                result_bytes=f.result_bytes,
            )
            for name, f in sorted(self._functions.items())
        }

    def trace(self) -> dict[str, Any]:
        titles = {(1, os.getpid()): f"inline pid={os.getpid()}"}
        return timeline.chrome_trace(list(self._events), titles, self.now())

    def stacks(self) -> str:
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            return f"inline pid={os.getpid()}\n{file.read().decode(errors='replace')}"

    def span(self, name: str, start_ns: int) -> None:
        self._add("span", name, start_ns, self.now(), 0)

    def now(self) -> int:
        return time.monotonic_ns()


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
