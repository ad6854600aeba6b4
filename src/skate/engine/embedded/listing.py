"""The tasks, objects and workers of a session, as rows with Ray's keys.

Read from what every process writes down for the timeline; only of calls that have not
started is their owner asked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ... import _core
from .why import State

if TYPE_CHECKING:
    from .engine import EmbeddedEngine

Row = dict[str, Any]

_NOT_KNOWN = "NIL"  # as Ray says
_STATES = {
    State.READY: "FINISHED",
    State.FAILED: "FAILED",
    State.NEEDS: "PENDING_ARGS_AVAIL",
    State.QUEUED: "PENDING_NODE_ASSIGNMENT",
    State.LEASE: "PENDING_NODE_ASSIGNMENT",
    State.TAKEN: "SUBMITTED_TO_WORKER",
    State.SENT: "SUBMITTED_TO_WORKER",
    State.RECEIVED: "SUBMITTED_TO_WORKER",
    State.BEHIND: "PENDING_ACTOR_TASK_ORDERING_OR_CONCURRENCY",
}


def list_tasks(engine: EmbeddedEngine) -> Iterator[Row]:
    statistics = _core.Statistics.of(engine.node)
    users = {user[:2]: user[2:] for user in statistics.users()}  # by index and pid
    actors = {actor.pid: actor for actor in engine.list_actors() if actor.pid}
    labels: dict[int, list[str]] = {}
    submitted: dict[int, tuple[int, str]] = {}  # task -> when, name
    runs: dict[int, list[tuple[Any, ...]]] = {}
    for index, pid, kind, _, label, start, end, task, failed in statistics.events():
        if kind not in (_core.EVENT_SUBMIT, _core.EVENT_RUN):
            continue
        known = labels.setdefault(index, statistics.labels(index))
        name = known[label] if label < len(known) else "(others)"
        if kind == _core.EVENT_SUBMIT:
            submitted[task] = start, name
        else:
            runs.setdefault(task, []).append((start, end, failed, index, pid, name))
    known_since = statistics.known_since  # last: what has gone meanwhile is before it
    pending = _Pending(engine, statistics)
    began = {task: attempts[0][0] for task, attempts in runs.items()}
    began.update((task, when) for task, (when, _) in submitted.items())
    for task in sorted(began, key=lambda task: began[task]):
        made = _ms(submitted[task][0]) if task in submitted else None
        for attempt, run in enumerate(sorted(runs.get(task, ()))):
            start, end, failed, index, pid, name = run
            actor = actors.get(pid)
            title, _, epoch = users.get((index, pid), ("", False, 0))
            yield _task(
                task,
                name,
                "RUNNING" if end == 0 else "FAILED" if failed else "FINISHED",
                attempt=attempt,
                is_actor=bool(title),
                actor_id=f"{actor.actor_id:032x}" if actor is not None else None,
                worker_id=_worker_id(index, epoch),
                pid=pid,
                made=made,
                start=_ms(start),
                end=_ms(end) if end else None,
            )
        if task not in runs:
            when, name = submitted[task]
            state = pending.state(task)
            if state is None:
                if when < known_since:
                    continue  # it may have run: that would be forgotten
                state = "FAILED"  # it has ended before it could run
            yield _task(task, name, state, made=made)


class _Pending:
    """States of calls that no process has begun to run, as their owners tell."""

    def __init__(self, engine: EmbeddedEngine, statistics: _core.Statistics) -> None:
        self._engine = engine
        live = statistics.processes()
        self._owners = {(process["index"], process["epoch"]) for process in live}
        self._silent: set[tuple[int, int]] = set()

    def state(self, task: int) -> str | None:
        """None: nobody knows it any more."""
        owner = _core.owner_of(task)
        if owner in self._silent:
            return _NOT_KNOWN
        if owner not in self._owners:
            return None
        found = self._engine.node.explain(task, owner[0], counts=False)
        if found is None:  # it is stopped, say: it is not asked for each of its calls
            self._silent.add(owner)
            return _NOT_KNOWN
        return _STATES.get(State(found["state"]))


def _task(
    task: int,
    name: str,
    state: str,
    *,
    attempt: int = 0,
    is_actor: bool | None = None,
    actor_id: str | None = None,
    worker_id: str | None = None,
    pid: int | None = None,
    made: int | None = None,
    start: int | None = None,
    end: int | None = None,
) -> Row:
    if is_actor is None:
        is_actor = "." in name
    kind = "ACTOR_TASK" if is_actor else "NORMAL_TASK"
    if is_actor and name.endswith(".__init__"):
        kind = "ACTOR_CREATION_TASK"
    return {
        "task_id": f"{task:032x}",
        "attempt_number": attempt,
        "name": name,
        "state": state,
        "actor_id": actor_id,
        "type": kind,
        "func_or_class_name": name,
        "worker_id": worker_id,
        "worker_pid": pid,
        "error_type": "TASK_EXECUTION_EXCEPTION" if state == "FAILED" else None,
        "creation_time_ms": made,
        "start_time_ms": start,
        "end_time_ms": end,
    }


def list_objects(engine: EmbeddedEngine) -> Iterator[Row]:
    kind = "DRIVER" if engine.node.index == _core.DRIVER else "WORKER"
    pending = _Pending(engine, _core.Statistics.of(engine.node))
    for found in engine.node.list_objects():
        if found["failed"]:
            state = "FAILED"
        elif found["ready"]:
            state = "FINISHED"
        else:
            state = pending.state(found["object_id"]) or "FAILED"
        if found["is_actor"]:
            held = "ACTOR_HANDLE"
        elif found["local"]:
            held = "LOCAL_REFERENCE"
        else:
            held = "PINNED_IN_MEMORY"  # for other processes
        yield {
            "object_id": f"{engine.session}{found['object_id']:032x}",
            "object_size": found["size"],
            "task_status": state,
            "attempt_number": 0,
            "reference_type": held,
            "call_site": "disabled",
            "type": kind,
            "pid": os.getpid(),
            "num_borrowers": found["borrowers"],
            "in_store": found["in_store"],
        }


def list_workers(engine: EmbeddedEngine) -> Iterator[Row]:
    for process in _core.Statistics.of(engine.node).processes():
        index = process["index"]
        yield {
            "worker_id": _worker_id(index, process["epoch"]),
            "is_alive": True,
            "worker_type": "DRIVER" if index == _core.DRIVER else "WORKER",
            "exit_type": None,
            "pid": process["pid"],
            "start_time_ms": _ms(process["since"]),
            "title": process["title"],
            "tasks_done": process["tasks_done"],
            "store_bytes": process["store_bytes"],
        }


def _worker_id(index: int, epoch: int) -> str:
    """A process's name; its index alone goes to others after its death."""
    return f"{epoch << 32 | index:032x}"


def _ms(monotonic_ns: int) -> int:
    """When that was, as milliseconds since 1970."""
    return (time.time_ns() - _core.monotonic_ns() + monotonic_ns) // 1_000_000
