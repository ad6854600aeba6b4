"""Events of a session as a trace that Perfetto and chrome://tracing show. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

_SUBMIT_US = 0.5  # how wide a submission is drawn
_LANES = 1000  # numbers for those of a thread, if it has no more


class Event(NamedTuple):
    process: tuple[int, int]  # index, process id
    kind: str  # submit, run, get, got, wait, span
    thread: int
    name: str
    start: int  # ns, of one clock for all
    end: int  # 0: it goes on
    id: int  # of the task; of a get or a wait, how many refs


def chrome_trace(
    events: list[Event], titles: dict[tuple[int, int], str], now: int
) -> dict[str, Any]:
    """The JSON object of the trace event format.

    Slices of one thread that overlap without nesting, such as the calls of an async
    actor, get lanes of their own. Arrows lead from where a task was submitted to where
    it ran and to the ``get`` that took its value.
    """
    origin = min((event.start for event in events), default=now)
    lanes = _Lanes()
    out: list[dict[str, Any]] = []
    used = {event.process for event in events}
    for process in sorted(used):
        index, pid = process
        title = titles.get(process, f"pid={pid}")
        out.append(_meta("process_name", pid, 0, {"name": title}))
        out.append(_meta("process_sort_index", pid, 0, {"sort_index": index}))
    slices = sorted(
        (event for event in events if event.kind != "got"),
        key=lambda event: (
            event.process,
            event.thread,
            event.start,
            -(event.end or now),
        ),
    )
    flows = _Flows(origin)
    placed = [
        lanes.place(event.process, event.thread, event.start, event.end or now)
        for event in slices
    ]
    per_thread = max(_LANES, *lanes.counts.values(), 0)
    tids = {}
    for event, lane in zip(slices, placed, strict=True):
        tid = tids[event] = event.thread * per_thread + lane
        out.append(_slice(event, event.end or now, tid, origin))
        flows.add(event, tid)
    for (process, thread), count in lanes.counts.items():
        for lane in range(count):
            name = "main" if thread == 0 else f"thread {thread}"
            if lane:
                name += f", {lane + 1}"
            tid = thread * per_thread + lane
            out.append(_meta("thread_name", process[1], tid, {"name": name}))
    last_get: dict[tuple[tuple[int, int], int], Event] = {}
    for event in events:  # in the order in which each process recorded them
        if event.kind == "get":
            last_get[event.process, event.thread] = event
        elif event.kind == "got":
            get = last_get.get((event.process, event.thread))
            if get is not None:
                flows.got(event.id, get, tids[get])
    out += flows.arrows()
    return {"traceEvents": out, "displayTimeUnit": "ms"}


def _meta(name: str, pid: int, tid: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "args": args}


def _slice(event: Event, end: int, tid: int, origin: int) -> dict[str, Any]:
    out: dict[str, Any] = {
        "ph": "X",
        "cat": event.kind,
        "name": event.name,
        "pid": event.process[1],
        "tid": tid,
        "ts": (event.start - origin) / 1000,
        "dur": max((end - event.start) / 1000, 0.001),
    }
    if event.kind == "submit":
        out["name"] = f"submit {event.name}"
        out["dur"] = _SUBMIT_US
    elif event.kind in ("get", "wait"):
        out["name"] = event.kind
        out["args"] = {"refs": event.id}
    if not event.end:
        out["args"] = {**out.get("args", {}), "ended": False}
    return out


class _Lanes:
    """Puts slices that overlap into lanes, so that those of a lane nest."""

    def __init__(self) -> None:
        self.counts: dict[tuple[tuple[int, int], int], int] = {}
        self._open: dict[tuple[tuple[int, int], int], list[list[int]]] = {}

    def place(self, process: tuple[int, int], thread: int, start: int, end: int) -> int:
        key = process, thread
        lanes = self._open.setdefault(key, [])
        for lane, ends in enumerate(lanes):
            while ends and ends[-1] <= start:
                ends.pop()
            if not ends or end <= ends[-1]:
                ends.append(end)
                return lane
        lanes.append([end])
        self.counts[key] = len(lanes)
        return len(lanes) - 1


class _Flows:
    """Arrows. A task's id may be used again: each submission begins a new arrow."""

    def __init__(self, origin: int) -> None:
        self._origin = origin
        self._points: dict[int, list[tuple[int, str, tuple[int, int], int]]] = {}

    def add(self, event: Event, tid: int) -> None:
        if event.kind in ("submit", "run"):
            point = event.start, event.kind, event.process, tid
            self._points.setdefault(event.id, []).append(point)

    def got(self, task: int, get: Event, tid: int) -> None:
        points = self._points.get(task)
        if points is not None:
            points.append((get.end, "got", get.process, tid))

    def arrows(self) -> list[dict[str, Any]]:
        out = []
        for number, chain in enumerate(self._chains()):
            for place, (when, kind, process, tid) in enumerate(chain):
                first, last = place == 0, place == len(chain) - 1
                arrow: dict[str, Any] = {
                    "ph": "s" if first else "f" if last else "t",
                    "cat": "task",
                    "name": "task",
                    "id": number,
                    "pid": process[1],
                    "tid": tid,
                    "ts": (when - self._origin) / 1000,
                }
                if last and not first:
                    arrow["bp"] = "e"
                if kind == "got":  # within the slice, whose end does not belong to it
                    arrow["ts"] -= 0.0005
                out.append(arrow)
        return out

    def _chains(self) -> list[list[tuple[int, str, tuple[int, int], int]]]:
        chains = []
        for points in self._points.values():
            chain: list[tuple[int, str, tuple[int, int], int]] = []
            for point in sorted(points):
                if point[1] == "submit" and chain:
                    chains.append(chain)
                    chain = []
                chain.append(point)
            chains.append(chain)
        return [chain for chain in chains if len(chain) > 1]
