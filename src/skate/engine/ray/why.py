"""Why a ref has no value yet, as far as Ray's own records tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray

from . import translate
from .tasks import ENDED, Call, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_INDENT = "  "
_SHOWN = 5  # of what a task has called


def explain(ref: ray.ObjectRef, calls: Sequence[Call], free: str) -> str:
    """In words: where the task of ``ref`` is, and what it waits for.

    Args:
        ref: it has no value.
        calls: those of the session.
        free: the resources of the cluster that nobody holds.
    """
    found = {call.task_id: call for call in calls}
    call = found.get(ref.task_id().binary())
    if call is None:
        return "Ray has not told of its task yet: its news are about a second old."
    return "\n".join(_Explanation(calls, free).of(call, 0, ()))


class _Explanation:
    def __init__(self, calls: Sequence[Call], free: str) -> None:
        self._open = [call for call in calls if call.stage not in ENDED]
        self._free = free

    def of(self, call: Call, depth: int, path: tuple[Call, ...]) -> Iterator[str]:
        indent = _INDENT * depth
        match call.stage:
            case Stage.LACKS_ARGUMENT:
                yield (
                    f"{indent}{call.name} has not started: it lacks an argument. Ray "
                    "does not tell which: ask skate.why of the refs that it was given."
                )
            case Stage.QUEUED | Stage.SUBMITTED if call.actor:
                yield from self._of_method(call, depth, (*path, call))
            case Stage.QUEUED:
                yield from self._queued(call, depth)
            case Stage.SUBMITTED:
                yield f"{indent}{call.name} is on its way to worker (pid {call.pid})."
            case Stage.RUNNING:
                yield from self._running(call, depth, (*path, call))
            case _:
                yield f"{indent}{call.name} has ended, or is about to be tried again."

    def _queued(self, call: Call, depth: int) -> Iterator[str]:
        demand = translate.describe(translate.countable(call.demand))
        yield (
            f"{_INDENT * depth}{call.name} is queued for {demand}; free in the "
            f"cluster: {self._free}."
        )

    def _of_method(
        self, call: Call, depth: int, path: tuple[Call, ...]
    ) -> Iterator[str]:
        indent = _INDENT * depth
        actor = _actor(call.actor)
        if actor["State"] == "DEAD":
            yield f"{indent}{call.name}: its actor is dead."
        elif actor["State"] == "RESTARTING":
            yield f"{indent}{call.name}: its actor restarts."
        elif actor["State"] != "ALIVE":
            yield f"{indent}{call.name}: its actor has not started."
            for other in self._open:
                if other.actor == call.actor and other.name.endswith(".__init__"):
                    yield from self._constructor(other, depth + 1)
        else:
            others = [
                other
                for other in self._open
                if other.actor == call.actor and other.stage is Stage.RUNNING
            ]
            names = ", ".join(f"{o.name}, for {o.age():.1f} s" for o in others)
            yield (
                f"{indent}{call.name} waits at its actor (pid {actor['Pid']}), behind "
                f"what it runs now: {names or 'nothing that Ray knows of'}."
            )
            for other in others:
                if other in path:
                    yield f"{indent}{_INDENT}a circle: {_circle(path, other)}."
                else:
                    yield from self._running(other, depth + 1, (*path, other))

    def _constructor(self, call: Call, depth: int) -> Iterator[str]:
        if call.stage is Stage.RUNNING:
            yield from self._running(call, depth, (call,))
        elif call.stage is Stage.LACKS_ARGUMENT:
            yield from self.of(call, depth, ())
        else:
            yield from self._queued(call, depth)

    def _running(self, call: Call, depth: int, path: tuple[Call, ...]) -> Iterator[str]:
        indent = _INDENT * depth
        yield (
            f"{indent}{call.name} runs on worker (pid {call.pid}) of node "
            f"{call.node[:8]} for {call.age():.1f} s; 'ray stack' there shows the line."
        )
        called = [other for other in self._open if other.parent == call.task_id]
        if called:
            yield f"{indent}{_INDENT}of what it has called, these have not ended:"
        for other in called[:_SHOWN]:
            if other in path:
                yield f"{indent}{_INDENT}a circle: {_circle(path, other)}."
            else:
                yield from self.of(other, depth + 2, path)
        if len(called) > _SHOWN:
            yield f"{indent}{_INDENT}and {len(called) - _SHOWN} more."


def _circle(path: tuple[Call, ...], again: Call) -> str:
    names = [call.name for call in path[path.index(again) :]]
    return f"{' -> '.join([*names, names[0]])}. None of them can end"


def _actor(actor_id: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = ray._private.state.actors(actor_id)
    return found
