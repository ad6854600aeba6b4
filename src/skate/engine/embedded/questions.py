"""What processes ask the supervisor, and what it answers: one method a question."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..._placement import GroupInfo
from ...exceptions import EngineError
from . import events as life
from .actors import ActorRequest, Name
from .forker import Process
from .requests import Request

if TYPE_CHECKING:
    from .supervisor import Supervisor

_ACTORS_AT_ONCE = 200


class Refusal:
    """Comes out of ``pickle.loads`` at the asker as an exception that is raised."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return _raise, (self._text,)


def _raise(text: str) -> None:
    raise EngineError(text)


def _place_in_line(
    found: tuple[Request, int] | None,
) -> tuple[dict[str, float], int] | None:
    return None if found is None else (dict(found[0].resources), found[1])


class Questions:
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._life = supervisor.life

    def answer(
        self, process: Process, name: str, *arguments: Any
    ) -> tuple[Any, list[int]]:
        """The answer, and descriptors to go with it."""
        found: Any = getattr(self, f"_ask_{name}")(process, *arguments)
        if isinstance(found, _WithDescriptors):
            return found.answer, found.fds
        return found, []

    # Actors ------------------------------------------------------------------

    def _ask_create_actor(self, process: Process, request: ActorRequest) -> Any:
        if request.name is not None and self._life.actors.named(request.name):
            return "exists", None
        why = self._life.room_for("actor")
        proc = self._life.allocate("actor")
        if proc is None:
            self._supervisor.tell(life.RoomWanted())
            return "full", (why, self._life.comes_free())
        self._supervisor.tell(life.ActorWanted(process.proc, proc, request))
        return "ok", tuple(proc)

    def _ask_get_actor(self, process: Process, name: Name) -> Any:
        actor = self._life.actors.named(name)
        if actor is None:
            names = self._life.actors.names()
            return "unknown", [known for space, known in names if space == name[0]]
        return "ok", (actor.request.actor_id, actor.request.interface)

    def _ask_kill(self, process: Process, actor_id: int, no_restart: bool) -> Any:
        """The process that ends now; None: nobody's death is to be waited for.

        Its end may take long, while its zygote is busy. Whoever asks hears of the death
        as all do.
        """
        actor = self._life.actors.get(actor_id)
        victim = None if actor is None else self._supervisor.process(actor.proc)
        self._supervisor.tell(life.ActorKilled(actor_id, no_restart))
        return None if victim is None or victim is process else tuple(victim.proc)

    def _ask_list_actors(self, process: Process, after: int) -> Any:
        """Some at a time, so that others are heard in between."""
        answer = []
        for actor in self._life.actors.page(after, _ACTORS_AT_ONCE):
            now = self._supervisor.process(actor.proc)
            request = actor.request
            answer.append(
                (
                    request.actor_id,
                    request.class_name,
                    actor.state,
                    request.name,
                    actor.num_restarts,
                    now.pid if now is not None else 0,
                    request.is_detached,
                    actor.cause,
                    actor.detail,
                )
            )
            after = actor.number
        return after, answer

    # Resources ---------------------------------------------------------------

    def _ask_available(self, process: Process) -> Any:
        return self._life.available(self._supervisor.control.free_cpus())

    def _ask_assigned(self, process: Process) -> Any:
        return self._life.assigned(process.proc)

    def _ask_waiting_task(self, process: Process, task: int) -> Any:
        """What it waits for, and how many requests were before its; None: it has it."""
        return _place_in_line(self._life.find_waiting(task=task))

    def _ask_waiting_actor(self, process: Process, index: int) -> Any:
        """The same of the actor in a place."""
        return _place_in_line(self._life.find_waiting(actor=index))

    def _ask_held_for(self, process: Process) -> tuple[str, float, float] | None:
        """Of what idle CPUs are held for: what it is, its CPUs, and how long."""
        found = self._life.held_for()
        if found is None:
            return None
        request, seconds = found
        what = "a task"
        if request.group is not None:
            what = "a placement group"
        elif request.actor is not None:
            what = "an actor"
        return what, request.resources["CPU"], seconds

    def _ask_holders(self, process: Process) -> Any:
        """Who holds resources: process index -> what."""
        return self._life.holders()

    # Placement groups --------------------------------------------------------

    def _ask_new_placement_group_id(self, process: Process) -> str:
        return self._supervisor.placements.new_id()

    def _ask_create_placement_group(
        self, process: Process, group: str, info: GroupInfo
    ) -> None:
        self._supervisor.placements.add(group, info)
        self._supervisor.tell(life.GroupWanted(group, info.bundles, bool(info.reason)))

    def _ask_remove_placement_group(self, process: Process, group: str) -> None:
        self._supervisor.remove_placement_group(group)

    def _ask_placement_group(self, process: Process, group: str) -> GroupInfo | None:
        return self._supervisor.placements.get(group)

    def _ask_placement_groups(self, process: Process) -> dict[str, GroupInfo]:
        return self._supervisor.placements.all()

    # The rest ----------------------------------------------------------------

    def _ask_has_offspring(self, process: Process) -> bool:
        return self._supervisor.has_offspring(process)

    def _ask_group(self, process: Process, join: int, name: str, *what: int) -> Any:
        try:
            return _WithDescriptors(
                *self._supervisor.collectives.join(process.proc, join, name, *what)
            )
        except (OSError, RuntimeError) as error:
            return "full", f"the memory of group {name!r} cannot be made: {error}"

    def _ask_leave_group(self, process: Process, join: int) -> None:
        self._supervisor.collectives.leave(process.proc, join)

    def _ask_breakpoint(self, process: Process, title: str) -> Any:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours:
            heard = self._supervisor.output.call_driver(
                b"B" + title.encode(errors="replace"), [ours.fileno()]
            )
        if heard:
            return _WithDescriptors("", [theirs.detach()], ours=True)
        theirs.close()
        return "the driver, which does not answer,"

    def _ask_note(self, process: Process, number: int) -> Any:
        return self._supervisor.notes.get(number)


class _WithDescriptors:
    def __init__(self, answer: Any, fds: list[int], *, ours: bool = False) -> None:
        self.answer = answer
        self.fds = [fd if ours else os.dup(fd) for fd in fds]
