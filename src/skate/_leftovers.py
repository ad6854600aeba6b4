"""What a driver still holds or runs: for tests that must leave nothing behind."""

from __future__ import annotations

from ._runtime import current
from .engine.protocol import ActorState


def leftovers() -> list[str]:
    """What is left in this session, in words; empty when nothing is.

    Objects that this process owns and something refers to, tasks without a result, and
    actors that live. Costs a question to the engine, well below a millisecond.
    """
    engine = current()
    facts = engine.statistics()
    tasks = facts.get("pending_tasks", 0)
    counts = [(facts["objects"], "object"), (tasks, "unfinished task")]
    found = [f"{n} {what}{'s' if n > 1 else ''}" for n, what in counts if n > 0]
    for actor in engine.list_actors():
        if actor.state is not ActorState.DEAD:
            name = f" named {actor.name!r}" if actor.name else ""
            found.append(f"actor {actor.class_name}{name}")
    return found
