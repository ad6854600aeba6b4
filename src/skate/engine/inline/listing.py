"""The tasks and objects of the session, as rows with Ray's keys."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import InlineEngine

Row = dict[str, Any]


def list_tasks(engine: InlineEngine) -> list[Row]:
    with engine.lock:
        rows = engine.record.tasks()
        waiting = {call.trace_id: call for call in engine.unfinished.values()}
        for row in rows:
            if not row["state"]:
                call = waiting.get(int(row["task_id"], 16))
                lacks = call is not None and call.missing
                row["state"] = (
                    "PENDING_ARGS_AVAIL" if lacks else "PENDING_NODE_ASSIGNMENT"
                )
    return rows


def list_objects(engine: InlineEngine) -> list[Row]:
    with engine.lock:
        return [*_values(engine), *_handles(engine)]


def _values(engine: InlineEngine) -> Iterator[Row]:
    for object_id, entry in engine.objects.items():
        if entry.ready:
            state = "FINISHED" if entry.error is None else "FAILED"
        elif entry.producer is not None and entry.producer.started:
            state = "RUNNING"
        else:
            state = "PENDING_NODE_ASSIGNMENT"
        size = entry.value.num_bytes if entry.value is not None else 0
        yield _object(engine, object_id, size, state, "LOCAL_REFERENCE")


def _handles(engine: InlineEngine) -> Iterator[Row]:
    for actor in engine.live_actors():
        yield _object(engine, actor, 0, "FINISHED", "ACTOR_HANDLE")


def _object(
    engine: InlineEngine, object_id: int, size: int, state: str, held: str
) -> Row:
    return {
        "object_id": f"{engine.session}{object_id:032x}",
        "object_size": size,
        "task_status": state,
        "attempt_number": 0,
        "reference_type": held,
        "call_site": "disabled",
        "type": "DRIVER",
        "pid": os.getpid(),
        "num_borrowers": 0,
        "in_store": bool(size),
    }


def list_workers(engine: InlineEngine) -> list[Row]:
    """One: this process does all the work."""
    return [
        {
            "worker_id": f"{0:032x}",
            "is_alive": True,
            "worker_type": "DRIVER",
            "exit_type": None,
            "pid": os.getpid(),
            "start_time_ms": None,
            "title": "",
            "tasks_done": sum(f.finished for f in engine.record.functions().values()),
            "store_bytes": engine.objects.statistics()["store_bytes"],
        }
    ]
