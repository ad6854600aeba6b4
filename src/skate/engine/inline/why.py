"""Why a ref has no value yet, on the inline engine."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING

from ..frames import users_part
from .actor import ActorCall, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..._ref import ObjectRef
    from .engine import InlineEngine
    from .objects import Entry
    from .units import Call

_INDENT = "  "
_MAX_DEPTH = 12
_MAX_FRAMES = 4


def why(engine: InlineEngine, ref: ObjectRef[object]) -> str:
    with engine.lock:
        return "\n".join(_explain(engine, engine.entry(ref), 0, []))


def _explain(
    engine: InlineEngine, entry: Entry, depth: int, path: list[Call]
) -> Iterator[str]:
    indent = _INDENT * depth
    call = entry.producer
    if depth > _MAX_DEPTH:
        yield f"{indent}... and so on"
    elif entry.error is not None:
        yield f"{indent}it has an error: get raises it."
    elif call is None:
        yield f"{indent}it has its value now."
    elif call in path:
        names = [other.label for other in path[path.index(call) :]]
        circle = " -> ".join([*names, names[0]])
        yield f"{indent}which closes a circle: {circle}. None of them can end."
    else:
        yield from _explain_call(engine, call, depth, [*path, call])


def _explain_call(
    engine: InlineEngine, call: Call, depth: int, path: list[Call]
) -> Iterator[str]:
    indent = _INDENT * depth
    if call.missing:
        many = "an argument" if call.missing == 1 else f"{call.missing} arguments"
        yield f"{indent}{call.label} has not started: it lacks {many}:"
        for ref in call.argument_refs():
            entry = engine.entry(ref)
            if not entry.ready:
                yield from _explain(engine, entry, depth + 1, path)
    elif call.thread:
        yield f"{indent}{call.label} has started, and has not ended."
        for frame in _frames(call.thread):
            yield f"{indent}{_INDENT}{frame}"
        wait = engine.baton.wait_of(call.thread)
        if wait is not None:
            yield f"{indent}{_INDENT}it is blocked in {wait.about()}:"
            for other in wait.pending:
                if not other.ready:
                    yield from _explain(engine, other, depth + 2, path)
    elif isinstance(call, ActorCall) and call.actor.state is State.STARTING:
        yield f"{indent}{call.label}: its actor has not started."
        yield from _resources(engine, call.actor.demand, depth + 1)
    elif isinstance(call, ActorCall) and call.actor.running:
        others = ", ".join(other.label for other in call.actor.running)
        yield f"{indent}{call.label} waits behind what its actor runs now: {others}."
        for running in call.actor.running:
            if running in path:
                names = [other.label for other in path[path.index(running) :]]
                circle = " -> ".join([*names, names[0]])
                yield f"{indent}{_INDENT}a circle: {circle}. None of them can end."
    elif not call.startable():
        yield f"{indent}{call.label} is queued for resources."
        yield from _resources(engine, call.demand, depth + 1)
    else:
        yield (
            f"{indent}{call.label} can run, and will when the driver waits in skate "
            "(get, wait): the inline engine runs nothing behind its back."
        )


def _resources(
    engine: InlineEngine, demand: Mapping[str, int], depth: int
) -> Iterator[str]:
    resources = engine.resources
    needs = resources.describe(demand) or "nothing"
    yield f"{_INDENT * depth}it needs {needs}; free: {resources.describe_free()}."


def _frames(thread: int) -> list[str]:
    innermost = sys._current_frames().get(thread)
    if innermost is None:
        return []
    stack = traceback.walk_stack(innermost)
    users = users_part(stack, lambda place: place[0].f_code.co_filename)
    return [
        f'File "{frame.f_code.co_filename}", line {line} in {frame.f_code.co_name}'
        for frame, line in users[:_MAX_FRAMES]
    ]
