"""Looking at a session, one's own or another of the same user's: read, never asked.

Everything is in the session's shared memory. From another terminal it is opened by the
supervisor's entry in /proc, which the kernel allows to the same user: nothing listens.
"""

from __future__ import annotations

import os
from typing import Any

from ... import _core
from ...exceptions import EngineError
from .. import timeline
from ..protocol import FunctionSummary
from ..timeline import Event
from . import stacks
from .processes import SUPERVISOR

_KINDS = {
    _core.EVENT_SUBMIT: "submit",
    _core.EVENT_RUN: "run",
    _core.EVENT_GET: "get",
    _core.EVENT_GOT: "got",
    _core.EVENT_SPAN: "span",
    _core.EVENT_WAIT: "wait",
}


def sessions() -> dict[int, _core.Statistics]:
    """The running sessions of this user, by the process id of their drivers."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        entry = f"/proc/{pid}"
        try:
            if os.stat(entry).st_uid != os.getuid():
                continue
            with open(f"{entry}/comm") as file:
                if file.read().strip() != SUPERVISOR:
                    continue
            links = [f"{entry}/fd/{fd}" for fd in os.listdir(f"{entry}/fd")]
            for link in links:
                if os.readlink(link).startswith("/memfd:skate-session"):
                    statistics = _open(link)
                    break
            else:
                continue
        except (OSError, ValueError):  # it ended, is another's, or another version's
            continue
        processes = statistics.processes()
        if processes and not statistics.closing:
            found[processes[0]["pid"]] = statistics
    return found


def _open(path: str) -> _core.Statistics:
    fd = os.open(path, os.O_RDONLY)
    try:
        return _core.Statistics(fd)
    finally:
        os.close(fd)


class Observer:
    """See ``engine.protocol.Observer``."""

    def __init__(self, statistics: _core.Statistics) -> None:
        self._statistics = statistics

    def functions(self) -> dict[str, FunctionSummary]:
        found = self._statistics.functions()
        return {name: FunctionSummary(**counts) for name, counts in found.items()}

    def session(self) -> dict[str, Any]:
        statistics = self._statistics
        processes = statistics.processes()
        now = _core.monotonic_ns()
        return {
            "engine": "embedded",
            "seconds": (now - processes[0]["since"]) * 1e-9 if processes else 0.0,
            "cpus": statistics.num_cpus,
            "cpus_used": sum(process["cpus"] for process in processes),
            "workers": max(0, len(processes) - 1),
            "store_bytes": sum(process["store_bytes"] for process in processes),
            "store_limit": statistics.store_limit,
            "ended": statistics.closing or not processes,
        }

    def trace(self) -> dict[str, Any]:
        statistics = self._statistics
        names = {}
        titles = {}
        for index, pid, title, pool, _ in statistics.users():
            role = "worker" if pool else "leased worker"
            if index == _core.DRIVER:
                role = "driver"
            titles[index, pid] = f"{title or role} pid={pid}"
            if index not in names:
                names[index] = statistics.labels(index)
        events = []
        for event in statistics.events():
            index, pid, number, thread, label, start, end, id_, _ = event
            known = names.get(index, [])
            name = known[label] if label < len(known) else "(others)"
            kind = _KINDS[number]
            events.append(Event((index, pid), kind, thread, name, start, end, id_))
        return timeline.chrome_trace(events, titles, _core.monotonic_ns())

    def stacks(self) -> str:
        statistics = self._statistics
        running: dict[int, list[str]] = {}
        now = _core.monotonic_ns()
        for index, _, since, function in statistics.running():
            text = f"{function} for {(now - since) * 1e-9:.1f} s"
            running.setdefault(index, []).append(text)
        found = stacks.read_stacks(statistics)
        parts = []
        for process in statistics.processes():
            index = process["index"]
            title = process["title"] or (
                "driver" if index == _core.DRIVER else "worker"
            )
            doing = ", ".join(running.get(index, ())) or "nothing"
            what = "" if index == _core.DRIVER else f", runs {doing}"
            stack = found.get(index)
            if stack is None:
                body = "  (did not answer)"
            elif index == _core.DRIVER or running.get(index):
                body = stack.rstrip()
            else:
                body = "  (waits for work)"
            parts.append(f"{title} pid={process['pid']}{what}\n{body}")
        return "\n\n".join(parts) + "\n"

    def span(self, name: str, start_ns: int) -> None:
        raise EngineError("spans are recorded by the session's own processes.")

    def now(self) -> int:
        return _core.monotonic_ns()


class OwnObserver(Observer):
    """Of the session that this process belongs to."""

    def __init__(self, node: _core.Node) -> None:
        super().__init__(_core.Statistics.of(node))
        self._node = node

    def span(self, name: str, start_ns: int) -> None:
        self._node.record_span(name, start_ns)
