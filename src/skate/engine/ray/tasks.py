"""The calls of this session as Ray has recorded them: where each is, and since when.

Processes tell Ray about once a second what has become of their calls, and its head node
keeps the last 100,000 of them (``RAY_task_events_max_num_task_in_gcs``).
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import ray
from ray._private.state import state
from ray.core.generated import common_pb2

from .worker import NO_ARGUMENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Stage(Enum):
    """How far a call has come."""

    LACKS_ARGUMENT = common_pb2.PENDING_ARGS_AVAIL
    QUEUED = common_pb2.PENDING_NODE_ASSIGNMENT
    SUBMITTED = common_pb2.SUBMITTED_TO_WORKER
    RUNNING = common_pb2.RUNNING
    FINISHED = common_pb2.FINISHED
    FAILED = common_pb2.FAILED


_STAGES = {stage.value: stage for stage in Stage}
ENDED = (Stage.FINISHED, Stage.FAILED)


@dataclass(frozen=True)
class Call:
    """The newest attempt of a task, or of a call of an actor."""

    task_id: bytes
    name: str
    stage: Stage
    since_ns: int  # it came to this stage, on the clock of its machine
    seconds: float  # that it ran; 0.0 if it has not ended
    parent: bytes  # the task that called it
    actor: str  # of its method or constructor, in hex; "" of a task
    demand: Mapping[str, float]
    pid: int  # of its worker, or 0
    node: str

    def age(self) -> float:
        """Seconds in its stage."""
        return max(0.0, (time.time_ns() - self.since_ns) / 1e9)


def calls(began_ns: int) -> list[Call]:
    """Those of this job that were made since ``began_ns``."""
    job = ray.get_runtime_context().get_job_id()
    newest: dict[bytes, Any] = {}
    for event in state._get_all_task_events():
        if event.job_id.hex() != job or not event.task_info.name:
            continue
        other = newest.get(event.task_id)
        if other is None or other.attempt_number < event.attempt_number:
            newest[event.task_id] = event
    found = (_call(event, began_ns) for event in newest.values())
    return [call for call in found if call is not None]


def _call(event: Any, began_ns: int) -> Call | None:
    times = {
        _STAGES[status]: at
        for status, at in event.state_updates.state_ts_ns.items()
        if status in _STAGES
    }
    if not times or min(times.values()) < began_ns:
        return None
    ended = [stage for stage in ENDED if stage in times]
    stage = ended[0] if ended else max(times, key=lambda stage: times[stage])
    started = times.get(Stage.RUNNING)
    info = event.task_info
    name = info.name if info.actor_id else info.func_or_class_name
    return Call(
        task_id=event.task_id,
        name=name.removesuffix(NO_ARGUMENTS),
        stage=stage,
        since_ns=times[stage],
        seconds=(times[stage] - started) / 1e9 if ended and started else 0.0,
        parent=info.parent_task_id,
        actor=info.actor_id.hex(),
        demand=dict(info.required_resources),
        pid=event.state_updates.worker_pid,
        node=event.state_updates.node_id.hex(),
    )


def by_name(found: Iterable[Call]) -> Mapping[str, list[Call]]:
    """The calls of each function."""
    functions: defaultdict[str, list[Call]] = defaultdict(list)
    for call in found:
        functions[call.name].append(call)
    return functions
