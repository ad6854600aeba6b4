"""Who lives, who may run, who holds what: the supervisor's policy, without acting.

Events in, commands out. No clock, no process, no socket: ``supervisor`` feeds this and
carries out what it says, and a test can feed it anything.

CPUs. A CPU is a token in the session directory. Pool workers take and return tokens by
themselves; tasks and actors with resources of their own (leases) get theirs here, so
for leases this machine takes tokens out of the pool and puts them back.

Actors. One whose process dies, and that may be restarted, gets a new process at once:
its name goes out with the news of the death, so that calls can be sent to it before it
runs, and before it has the resources that it must take again. An actor ends with the
process that created it, unless it is detached.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..._placement import group_of, lends, set_aside, total
from ..._runtime_env import NO_ENV, RuntimeEnv
from ..gpus import NO_GPUS, Gpus, Id, Share
from ..protocol import ActorState
from .actors import Actor, ActorRequest, Actors
from .processes import Cause, Kind, Proc

# Events ------------------------------------------------------------------------------


class WorkerWanted(NamedTuple):
    """Tasks wait and no idle worker does. ``active``: pool workers not blocked."""

    active: int
    starting: bool


class LeaseWanted(NamedTuple):
    owner: Proc
    task: int
    resources: Mapping[str, float]
    runtime_env: RuntimeEnv = NO_ENV


class LeaseDropped(NamedTuple):
    """The task was cancelled before it had got what it needs."""

    owner: Proc
    task: int


class LeaseDone(NamedTuple):
    worker: Proc


class ActorWanted(NamedTuple):
    owner: Proc
    proc: Proc  # from ``allocate``
    request: ActorRequest


class ActorConstructed(NamedTuple):
    proc: Proc


class ActorUnwanted(NamedTuple):
    """Its last handle is gone; ``told`` was told to finish and end."""

    actor_id: int
    told: Proc


class ActorKilled(NamedTuple):
    actor_id: int
    no_restart: bool


class GroupWanted(NamedTuple):
    """A placement group: set the sum of its bundles aside, under names of its own."""

    group: str
    bundles: tuple[Mapping[str, float], ...]


class GroupRemoved(NamedTuple):
    group: str


class Blocked(NamedTuple):
    """User code in a leased process waits, and needs no CPU meanwhile."""

    proc: Proc


class Unblocked(NamedTuple):
    proc: Proc


class CpuFree(NamedTuple):
    """A pool worker has put a token back because one is wanted."""


class CpusTaken(NamedTuple):
    """The outcome of ``TakeCpus``."""

    cpus: int


class Died(NamedTuple):
    proc: Proc
    cause: Cause
    detail: int


class Confirmed(NamedTuple):
    """``by`` has drained the rings of ``dead``, and says what it still holds of it.

    ``came_by``: it has come to hold something of it since it last said so.
    """

    by: Proc
    dead: Proc
    holds_objects: bool
    holds_blocks: bool
    came_by: bool = False


class LetGo(NamedTuple):
    """A process has let go of the last it held of ``dead``, or of its memory."""

    dead: Proc


Event = (
    WorkerWanted
    | LeaseWanted
    | LeaseDropped
    | LeaseDone
    | ActorWanted
    | ActorConstructed
    | ActorUnwanted
    | ActorKilled
    | GroupWanted
    | GroupRemoved
    | Blocked
    | Unblocked
    | CpuFree
    | CpusTaken
    | Died
    | Confirmed
    | LetGo
)

# Commands ----------------------------------------------------------------------------


class Prepare(NamedTuple):
    """Make the memory of a process that runs later: others may send to it now."""

    proc: Proc
    kind: Kind


class Fork(NamedTuple):
    proc: Proc
    kind: Kind
    runtime_env: RuntimeEnv = NO_ENV
    gpus: tuple[Id, ...] = ()
    refuses: bool = False  # its task, or actor, is of a group that was removed


class Kill(NamedTuple):
    proc: Proc
    cause: Cause = Cause.KILLED  # what others are told


class GrantLease(NamedTuple):
    owner: Proc
    task: int
    worker: Proc


class TellDied(NamedTuple):
    to: Proc
    dead: Proc
    cause: Cause
    detail: int
    successor: Proc | None = None  # where the actor lives that it was


class TellForget(NamedTuple):
    """Forget ``dead``: its borrows; ``step`` 1: what it owned; 2: its memory too."""

    to: Proc
    dead: Proc
    step: int


class Recycle(NamedTuple):
    """Nobody can name ``proc`` any more: its segment may go."""

    proc: Proc


class TakeCpus(NamedTuple):
    """Take up to ``cpus`` tokens from the pool; answer with ``CpusTaken``."""

    cpus: int


class GiveCpus(NamedTuple):
    cpus: int


class WantCpus(NamedTuple):
    """Ask pool workers for ``cpus`` tokens as they end their tasks."""

    cpus: int


Command = (
    Prepare
    | Fork
    | Kill
    | GrantLease
    | TellDied
    | TellForget
    | Recycle
    | TakeCpus
    | GiveCpus
    | WantCpus
)

# -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Member:
    kind: Kind
    resources: Mapping[str, float] = field(default_factory=dict)
    granted: bool = False  # it holds ``resources``
    blocked: bool = False  # ... but not the CPUs among them
    lease_owner: Proc | None = None
    refuses: bool = False
    runtime_env: RuntimeEnv = NO_ENV
    gpus: Share = NO_GPUS


@dataclass(slots=True)
class _Death:
    cause: Cause
    detail: int
    successor: Proc | None
    waiting: set[Proc]  # have not answered in this round of asking
    objects_held: bool = False
    blocks_held: bool = False
    came_by: bool = False
    # Who said so, when asked last. One that dies lets go without another word.
    holders: set[Proc] = field(default_factory=set)
    let_go: bool = False  # somebody did, after it had answered in this round
    # Rounds in a row in which nobody held anything. What one process holds may pass to
    # another that has just answered; it says so in the next round. So after two rounds
    # without, nobody does.
    objects_clean: int = 0
    blocks_clean: int = 0
    step: int = -1  # the last one that was told


@dataclass(slots=True)
class _Request:
    """A lease, an actor or a placement group that waits for resources."""

    resources: Mapping[str, float]
    runtime_env: RuntimeEnv = NO_ENV
    owner: Proc | None = None  # lease
    task: int = 0
    actor: Proc | None = None
    group: GroupWanted | None = None


_MAX_EPOCH = 1 << 14
_CLEAN_ROUNDS = 2
_DRIVER_INDEX = 1
# Workers for tasks with resources of their own, kept for the next such task.
_MAX_IDLE_LEASED = 4


class Lifecycle:
    """The state machine.

    Args:
        totals: the session's resources, CPU included.
        max_procs: how many processes there may be.
        gpus: the ids of ``totals["GPU"]`` GPUs.
        runtime_env: of the session: that of the pool's workers.
    """

    def __init__(
        self,
        totals: Mapping[str, float],
        max_procs: int,
        gpus: Sequence[Id] = (),
        runtime_env: RuntimeEnv = NO_ENV,
    ) -> None:
        self.totals = dict(totals)
        self.members: dict[Proc, _Member] = {}
        self._max_procs = max_procs
        self._next_index = _DRIVER_INDEX
        self._free: deque[Proc] = deque()
        self._used: dict[str, float] = dict.fromkeys(totals, 0.0)
        self._gpus = Gpus(gpus, totals.get("GPU", 0.0))
        self._runtime_env = runtime_env
        self._tokens = 0  # CPU tokens that this machine holds
        self._cpus_wanted = 0
        self._queue: deque[_Request] = deque()
        self._idle_leased: list[Proc] = []
        self._deaths: dict[Proc, _Death] = {}
        self._retiring: set[Proc] = set()  # end with the last actor that they own
        self.actors = Actors()
        self._created: dict[str, GroupWanted] = {}  # placement groups
        self._removed: set[str] = set()

    # Queries -----------------------------------------------------------------

    def allocate(self, kind: Kind) -> Proc | None:
        """A name for a new process; None when there are too many."""
        if self._free:
            proc = self._free.popleft()
        elif self._next_index < self._max_procs:
            proc = Proc(self._next_index, 1)
            self._next_index += 1
        else:
            return None
        self.members[proc] = _Member(kind)
        return proc

    def kind(self, proc: Proc) -> Kind | None:
        member = self.members.get(proc)
        return member.kind if member else None

    def assigned(self, proc: Proc) -> dict[str, float]:
        """What the task or the actor in ``proc`` holds."""
        member = self.members[proc]
        return {"CPU": 1.0} if member.kind == "pool" else dict(member.resources)

    def available(self, free_tokens: int) -> dict[str, float]:
        """Amounts that are not in use; ``free_tokens`` are those of the pool."""
        left = {
            k: total - self._used[k]
            for k, total in self.totals.items()
            if group_of([k]) is None
        }
        left["CPU"] = max(0.0, free_tokens + self._tokens - self._used["CPU"])
        return left

    def waiting(self) -> list[_Request]:
        """Requests that were not granted yet, oldest first."""
        return list(self._queue)

    def holders(self) -> dict[int, dict[str, float]]:
        """What processes with resources of their own hold, by index."""
        return {
            proc.index: {
                name: amount
                for name, amount in member.resources.items()
                if not (member.blocked and lends(name))
            }
            for proc, member in self.members.items()
            if member.granted
        }

    def is_created(self, group: str) -> bool:
        """True if the placement group has its resources."""
        return group in self._created

    # Events ------------------------------------------------------------------

    def handle(self, event: Event) -> list[Command]:
        match event:
            case WorkerWanted(active, starting):
                if starting or active >= max(1, int(self.totals["CPU"])):
                    return []
                return self._fork_pool()
            case LeaseWanted(owner, task, resources, env):
                if owner not in self.members:
                    return []
                self._queue.append(_Request(resources, env, owner=owner, task=task))
                return self._schedule()
            case ActorWanted(owner, proc, request):
                self.actors.add(request, owner, proc)
                self._queue.append(
                    _Request(request.resources, request.runtime_env, actor=proc)
                )
                return [Prepare(proc, "actor"), *self._schedule()]
            case ActorConstructed(proc):
                actor = self.actors.at(proc)
                if actor is not None:
                    actor.state = ActorState.ALIVE
                return []
            case ActorUnwanted(actor_id, told):
                actor = self.actors.get(actor_id)
                if actor is None:
                    return []
                actor.may_restart = False
                # Restarted meanwhile, it has not been told.
                stray = actor.proc != told
                return [Kill(actor.proc, Cause.OUT_OF_SCOPE)] if stray else []
            case ActorKilled(actor_id, no_restart):
                actor = self.actors.get(actor_id)
                if actor is None:
                    return []
                actor.may_restart &= not no_restart
                return [Kill(actor.proc)]
            case GroupWanted():
                wanted = total(event.bundles)
                self._queue.append(_Request(wanted, group=event))
                return self._schedule()
            case GroupRemoved(group):
                return self._remove_group(group)
            case LeaseDropped(owner, task):
                self._queue = deque(
                    r for r in self._queue if (r.owner, r.task) != (owner, task)
                )
                return self._schedule()
            case LeaseDone(worker):
                return self._end_lease(worker)
            case Blocked(proc) | Unblocked(proc):
                return self._set_blocked(proc, isinstance(event, Blocked))
            case CpuFree():
                return self._schedule()
            case CpusTaken(count):
                self._tokens += count
                return self._schedule(took=True)
            case Died():
                return self._died(event)
            case Confirmed():
                return self._confirmed(event)
            case LetGo(dead):
                death = self._deaths.get(dead)
                if death is None:
                    return []
                death.let_go = True
                return [] if death.waiting else self._ask_again(dead, death)

    # Leases ------------------------------------------------------------------

    def _schedule(self, took: bool = False) -> list[Command]:
        """Grant what fits, in order; a request that does not fit lets others pass."""
        commands: list[Command] = []
        missing = 0
        waiting: deque[_Request] = deque()
        for request in self._queue:
            if group_of(request.resources) in self._removed:
                commands += self._grant(request, refuse=True) or []
                continue
            others = {k: v for k, v in request.resources.items() if k != "CPU"}
            if any(
                self._used.get(k, 0.0) + v > self.totals.get(k, 0.0) + 1e-9
                for k, v in others.items()
            ):
                waiting.append(request)
                continue
            if not self._has_gpus(request):
                waiting.append(request)
                continue
            cpus = request.resources.get("CPU", 0.0)
            lacking = math.ceil(self._used["CPU"] + cpus - 1e-9) - self._tokens
            if cpus > 0 and lacking > 0:
                missing = missing or lacking
                waiting.append(request)
                continue
            granted = self._grant(request)
            if granted is None:
                waiting.append(request)
            else:
                commands += granted
        self._queue = waiting
        if missing and not took:
            return [*commands, TakeCpus(missing)]
        if missing != self._cpus_wanted:
            self._cpus_wanted = missing
            commands.append(WantCpus(missing))
        return commands + self._give_back(keep=missing)

    def _grant(self, request: _Request, refuse: bool = False) -> list[Command] | None:
        """None: there are too many processes to start another.

        ``refuse``: the task gets a worker that says no instead of running it.
        """
        commands: list[Command] = []
        if request.group is not None:
            return self._create_group(request.group)
        if request.actor is not None:
            proc: Proc | None = request.actor
            if proc not in self.members:
                return []  # it was killed before it could start
            assert proc is not None
        else:
            proc = self._idle_for(request) if not refuse else None
        share = NO_GPUS if refuse else self._gpus.find(request.resources)
        assert share is not None
        if proc is None or request.actor is not None:
            kind: Kind = "lease" if proc is None else "actor"
            proc = proc or self.allocate("lease")
            if proc is None:
                return None
            commands.append(Fork(proc, kind, request.runtime_env, share.ids, refuse))
        member = self.members[proc]
        member.runtime_env = request.runtime_env
        member.gpus = share
        self._gpus.take(share)
        member.refuses = refuse
        member.resources = {} if refuse else request.resources
        member.granted = True
        member.lease_owner = request.owner
        for name, amount in member.resources.items():
            self._used[name] += amount
        if request.owner is not None:
            commands.append(GrantLease(request.owner, request.task, proc))
        return commands

    def _has_gpus(self, request: _Request) -> bool:
        if request.group is not None:
            return self._gpus.can_open(request.group.bundles)
        return self._gpus.find(request.resources) is not None

    def _idle_for(self, request: _Request) -> Proc | None:
        """An idle worker with the request's runtime environment."""
        if any(name.startswith("GPU") for name in request.resources):
            return None
        for proc in reversed(self._idle_leased):
            if self.members[proc].runtime_env == request.runtime_env:
                self._idle_leased.remove(proc)
                return proc
        return None

    def _release(self, member: _Member) -> None:
        if not member.granted:
            return
        member.granted = False
        self._gpus.give(member.gpus)
        for name, amount in member.resources.items():
            lent = member.blocked and lends(name)
            if not lent and name in self._used:  # else of a group that was removed
                self._used[name] -= amount
        member.blocked = False

    def _give_back(self, keep: int) -> list[Command]:
        spare = self._tokens - math.ceil(self._used["CPU"] - 1e-9) - keep
        if spare <= 0:
            return []
        self._tokens -= spare
        return [GiveCpus(spare)]

    def _end_lease(self, worker: Proc) -> list[Command]:
        member = self.members.get(worker)
        if member is None or not member.granted:
            return []
        self._release(member)
        member.lease_owner = None
        commands: list[Command] = []
        if member.gpus.ids or member.refuses:
            # Its CUDA_VISIBLE_DEVICES was for one task.
            self._retiring.add(worker)
            commands += self._retire(worker)
        else:
            self._idle_leased.append(worker)
        if len(self._idle_leased) > _MAX_IDLE_LEASED:
            longest_idle = self._idle_leased.pop(0)
            self._retiring.add(longest_idle)
            commands += self._retire(longest_idle)
        return [*commands, *self._schedule()]

    def _retire(self, worker: Proc) -> list[Command]:
        """End a worker that is of no use, unless actors would end with it."""
        if worker not in self._retiring or self.actors.owned_by(worker):
            return []
        self._retiring.discard(worker)
        return [Kill(worker)]

    def _set_blocked(self, proc: Proc, blocked: bool) -> list[Command]:
        member = self.members.get(proc)
        if member is None or not member.granted or member.blocked == blocked:
            return []
        member.blocked = blocked
        for name, amount in member.resources.items():
            if lends(name) and name in self._used:
                # Going on may use more CPUs than there are for a moment: as Ray does.
                self._used[name] += -amount if blocked else amount
        return self._schedule()

    # Placement groups --------------------------------------------------------

    def _create_group(self, wanted: GroupWanted) -> list[Command]:
        for name, amount in total(wanted.bundles).items():
            self._used[name] += amount
        self._gpus.open(wanted.group, wanted.bundles)
        added = set_aside(wanted.group, wanted.bundles)
        self.totals.update(added)
        self._used.update(dict.fromkeys(added, 0.0))
        self._created[wanted.group] = wanted
        return []

    def _remove_group(self, group: str) -> list[Command]:
        self._removed.add(group)
        self._queue = deque(
            r for r in self._queue if r.group is None or r.group.group != group
        )
        wanted = self._created.pop(group, None)
        if wanted is not None:
            self._gpus.close(group)
            for name, amount in total(wanted.bundles).items():
                self._used[name] -= amount
            for name in set_aside(group, wanted.bundles):
                del self.totals[name], self._used[name]
        commands: list[Command] = [
            Kill(proc)
            for proc, member in self.members.items()
            if group_of(member.resources) == group
        ]
        return [*commands, *self._schedule()]

    # Deaths ------------------------------------------------------------------

    def _fork_pool(self) -> list[Command]:
        proc = self.allocate("pool")
        return [] if proc is None else [Fork(proc, "pool", self._runtime_env)]

    def _died(self, event: Died) -> list[Command]:
        dead = event.proc
        member = self.members.pop(dead, None)
        if member is None:
            return []
        self._release(member)
        if dead in self._idle_leased:
            self._idle_leased.remove(dead)
        self._queue = deque(
            r for r in self._queue if r.owner != dead and r.actor != dead
        )
        commands: list[Command] = [
            Kill(proc)  # it runs a task whose result nobody wants
            for proc, other in self.members.items()
            if other.lease_owner == dead
        ]
        self._retiring.discard(dead)
        commands += [
            Kill(actor.proc, Cause.OWNER_ENDED) for actor in self.actors.owned_by(dead)
        ]
        others = list(self.members)
        actor = self.actors.at(dead)
        successor = None
        if actor is not None:
            successor = self._restart_or_end(actor, event)
            if successor is not None:
                commands.append(Prepare(successor, "actor"))
            else:
                commands += self._retire(actor.owner)
        death = _Death(event.cause, event.detail, successor, waiting=set(others))
        self._deaths[dead] = death
        commands += [self._news(to, dead) for to in others]
        for earlier in list(self._deaths):
            if earlier != dead:
                commands += self._without_word_of(dead, earlier)
        if not others:
            commands += self._settle(dead)
        return [*commands, *self._schedule()]

    def _without_word_of(self, silent: Proc, dead: Proc) -> list[Command]:
        """``silent`` has died as well: what it held of ``dead`` it holds no more."""
        death = self._deaths[dead]
        was_asked = silent in death.waiting
        death.let_go |= was_asked or silent in death.holders
        death.waiting.discard(silent)
        death.holders.discard(silent)
        if death.waiting:
            return []
        if was_asked:
            return self._settle(dead)
        return self._ask_again(dead, death) if death.let_go else []

    def _restart_or_end(self, actor: Actor, event: Died) -> Proc | None:
        actor.cause, actor.detail = event.cause, event.detail
        if actor.restarts_after(event.cause):
            successor = self.allocate("actor")
            if successor is not None:
                self.actors.move(actor, successor)
                # It had them before.
                self._queue.appendleft(
                    _Request(
                        actor.request.resources,
                        actor.request.runtime_env,
                        actor=successor,
                    )
                )
                return successor
        self.actors.end(actor)
        return None

    def _confirmed(self, event: Confirmed) -> list[Command]:
        death = self._deaths.get(event.dead)
        if death is None:
            return []
        death.waiting.discard(event.by)
        death.objects_held |= event.holds_objects
        death.blocks_held |= event.holds_blocks
        death.came_by |= event.came_by
        if event.holds_objects or event.holds_blocks or event.came_by:
            death.holders.add(event.by)
        return [] if death.waiting else self._settle(event.dead)

    def _ask_again(self, dead: Proc, death: _Death) -> list[Command]:
        """Ask everybody once more what they still hold of ``dead``."""
        death.waiting = set(self.members)
        death.objects_held = death.blocks_held = False
        death.came_by = death.let_go = False
        death.holders.clear()
        return [self._news(to, dead) for to in self.members]

    def _news(self, to: Proc, dead: Proc) -> TellDied:
        death = self._deaths[dead]
        return TellDied(to, dead, death.cause, death.detail, death.successor)

    def _settle(self, dead: Proc) -> list[Command]:
        """Everybody has answered: its borrows may go, then more; or ask again."""
        death = self._deaths[dead]
        objects_held = death.objects_held or death.came_by
        blocks_held = death.blocks_held or death.came_by
        death.objects_clean = 0 if objects_held else death.objects_clean + 1
        death.blocks_clean = 0 if blocks_held else death.blocks_clean + 1
        step = 0
        if death.objects_clean >= _CLEAN_ROUNDS:
            step = 2 if death.blocks_clean >= _CLEAN_ROUNDS else 1
        commands: list[Command] = []
        if step > death.step:
            death.step = step
            commands += [TellForget(to, dead, step) for to in self.members]
        if step == 2:
            del self._deaths[dead]
            self._free.append(Proc(dead.index, dead.epoch % (_MAX_EPOCH - 2) + 1))
            commands.append(Recycle(dead))
        elif (
            death.let_go
            or death.came_by
            or 0 < death.objects_clean < _CLEAN_ROUNDS
            or 0 < death.blocks_clean < _CLEAN_ROUNDS
        ):
            commands += self._ask_again(dead, death)
        return commands
