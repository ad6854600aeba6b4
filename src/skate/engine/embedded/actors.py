"""The actors of a session as its supervisor knows them: names, states, restarts.

Part of the policy in ``lifecycle``: plain data, no process is touched here.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..._runtime_env import NO_ENV, RuntimeEnv
from ..protocol import ActorState
from .processes import Cause, Proc

Name = tuple[str, str]  # namespace, name

_MAX_DEAD = 1000  # as many of the dead are remembered

# Ends that are meant, or that a restart would only repeat.
_FINAL = {
    Cause.OUT_OF_SCOPE,
    Cause.CONSTRUCTOR_FAILED,
    Cause.RUNTIME_ENV_FAILED,
    Cause.ACTOR_EXIT,
    Cause.OWNER_ENDED,
    Cause.NO_PROCESS,
}


@dataclass(frozen=True, slots=True)
class ActorRequest:
    """What the supervisor is told when an actor is created."""

    actor_id: int  # the object id of its handle
    class_name: str
    name: Name | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    runtime_env: RuntimeEnv = NO_ENV
    max_restarts: int = 0  # -1: no limit
    is_detached: bool = False  # it does not end with the process that created it
    interface: bytes = b""  # for get_actor


@dataclass(slots=True)
class Actor:
    request: ActorRequest
    owner: Proc
    proc: Proc  # where it lives; where it lived last
    state: ActorState = ActorState.PENDING_CREATION
    num_restarts: int = 0
    number: int = 0  # in order of creation
    may_restart: bool = True
    cause: Cause = Cause.UNKNOWN  # of its last death
    detail: int = 0

    def restarts_after(self, cause: Cause) -> bool:
        limit = self.request.max_restarts
        return (
            self.may_restart
            and cause not in _FINAL
            and (limit < 0 or self.num_restarts < limit)
        )


class Actors:
    """Every live actor, by id, by process and by name; and the last of the dead."""

    def __init__(self) -> None:
        self._last = 0
        self._live: dict[int, Actor] = {}
        self._by_proc: dict[Proc, Actor] = {}
        self._names: dict[Name, Actor] = {}
        self._owned: dict[Proc, dict[int, Actor]] = {}  # that end with their owner
        self._dead: deque[Actor] = deque(maxlen=_MAX_DEAD)

    def __iter__(self) -> Iterator[Actor]:
        yield from self._dead
        yield from self._live.values()

    def page(self, after: int, size: int) -> list[Actor]:
        """The next that were made, oldest first; whoever ends moves none of them."""
        found = (actor for actor in self if actor.number > after)
        return heapq.nsmallest(size, found, key=lambda actor: actor.number)

    def add(self, request: ActorRequest, owner: Proc, proc: Proc) -> None:
        actor = Actor(request, owner, proc)
        self._last += 1
        actor.number = self._last
        self._live[request.actor_id] = self._by_proc[proc] = actor
        if not request.is_detached:
            self._owned.setdefault(owner, {})[request.actor_id] = actor
        if request.name is not None:
            assert request.name not in self._names
            self._names[request.name] = actor

    def get(self, actor_id: int) -> Actor | None:
        """The actor if it lives."""
        return self._live.get(actor_id)

    def at(self, proc: Proc) -> Actor | None:
        """The actor that lives in ``proc``."""
        return self._by_proc.get(proc)

    def named(self, name: Name) -> Actor | None:
        return self._names.get(name)

    def names(self) -> list[Name]:
        """Of the live, in alphabetical order."""
        return sorted(self._names)

    def owned_by(self, owner: Proc) -> list[Actor]:
        """Those that end with ``owner``."""
        return list(self._owned.get(owner, {}).values())

    def move(self, actor: Actor, to: Proc) -> None:
        """Its process has died, and ``to`` takes its place."""
        del self._by_proc[actor.proc]
        self._by_proc[to] = actor
        actor.proc = to
        actor.num_restarts += 1
        actor.state = ActorState.RESTARTING

    def end(self, actor: Actor) -> None:
        """It is dead for good; its name is free."""
        del self._by_proc[actor.proc]
        actor_id = actor.request.actor_id
        del self._live[actor_id]
        owned = self._owned.get(actor.owner, {})
        if owned.pop(actor_id, None) is not None and not owned:
            del self._owned[actor.owner]
        if actor.request.name is not None:
            del self._names[actor.request.name]
        actor.state = ActorState.DEAD
        self._dead.append(actor)
