"""Who lives, who may run, who holds what: the supervisor's policy, without acting.

Events in, commands out. No clock, no process, no socket: ``supervisor`` feeds this and
carries out what it says, and a test can feed it anything. Deaths are news for
everybody, and are told together: once after all the events that were there.

CPUs. A CPU is a token in the session directory. Pool workers take and return tokens by
themselves; tasks and actors with resources of their own (leases) get theirs here, so
for leases this machine takes tokens out of the pool and puts them back.

Actors. One whose process dies, and that may be restarted, gets a new process at once:
its name goes out with the news of the death, so that calls can be sent to it before it
runs, and before it has the resources that it must take again. An actor ends with the
process that created it, unless it is detached.

Places. A session has so many places for processes at a time; a dead one's is free again
when all have drained its rings. The lowest free one is used first, so the directory is
as short as it can be. Epochs only grow, so a name is used once.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..._amounts import UNIT, in_amounts, in_units
from ..._placement import group_of, lends, set_aside, total
from ..._runtime_env import NO_ENV, RuntimeEnv
from ..gpus import NO_GPUS, Gpus, Id, Share
from ..protocol import ActorState
from .actors import Actor, Actors
from .deaths import Deaths
from .events import (
    ActorConstructed,
    ActorKilled,
    ActorUnreached,
    ActorUnwanted,
    ActorWanted,
    Blocked,
    Command,
    Confirmed,
    CpuFree,
    CpusTaken,
    Died,
    Event,
    Fork,
    Forked,
    GiveCpus,
    GrantLease,
    GroupRemoved,
    GroupWanted,
    HoldOver,
    KeepNote,
    Kill,
    LeaseDone,
    LeaseDropped,
    LeaseWanted,
    LetGo,
    NotForked,
    Prepare,
    RefuseLease,
    Retire,
    RoomAgain,
    RoomWanted,
    ServePool,
    TakeCpus,
    Unblocked,
    WantCpus,
    WorkerWanted,
)
from .holds import Hold, tokens_for
from .precedence import GRANTS, Precedence
from .processes import Cause, Kind, Proc
from .requests import PROCESS, Line, Request, Waiting


@dataclass(slots=True)
class _Member:
    kind: Kind
    resources: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)  # the same, to add up
    granted: bool = False  # it holds ``resources``
    blocked: bool = False  # ... but not the CPUs among them
    lease_owner: Proc | None = None
    request: Request | None = None  # what it is being made for, and was not told yet
    runtime_env: RuntimeEnv = NO_ENV
    gpus: Share = NO_GPUS
    depth: int = 0  # of its task in a tree of leases
    placement: str | None = None  # the group whose resources it holds


_DRIVER_INDEX = 1
# Workers for tasks with resources of their own, kept for the next such task.
_MAX_IDLE_LEASED = 4
# Places that only workers of the pool and actors that restart may have: they were there
# before, or others may wait for them for ever. The pool leaves half of them to actors,
# whose own places are free a moment later.
_KEPT_PLACES = 16


class Lifecycle:
    """The state machine.

    Args:
        totals: the session's resources, CPU included.
        max_procs: places for processes, that of the supervisor included.
        gpus: the ids of ``totals["GPU"]`` GPUs.
        runtime_env: of the session: that of the pool's workers.
        limit: why the machine gives no process of a kind now; "": it does.
        first_epoch: of the first user of each place.
        lives: whether a process has not ended yet, of which nobody told so far.
        pool_waits: whether the pool stands back though it has work.
        reach: how many of ``max_procs`` the machine allows; None: all.
    """

    def __init__(
        self,
        totals: Mapping[str, float],
        max_procs: int,
        gpus: Sequence[Id] = (),
        runtime_env: RuntimeEnv = NO_ENV,
        limit: Callable[[Kind], str] = lambda kind: "",
        first_epoch: int = 1,
        lives: Callable[[Proc], bool] = lambda proc: True,
        pool_waits: Callable[[], bool] = lambda: False,
        reach: int | None = None,
    ) -> None:
        self._totals = in_units(totals)
        self.members: dict[Proc, _Member] = {}
        self._limit = limit
        self._lives = lives
        self._pool_waits = pool_waits
        self._max_procs = max_procs
        self._reach = max_procs if reach is None else reach
        self._kept = min(_KEPT_PLACES + int(totals["CPU"]), max_procs // 8)
        self._next_index = _DRIVER_INDEX
        self._free: list[int] = []  # below that, in order
        self._epochs: dict[int, int] = {}  # index -> that of its last user
        self._first_epoch = first_epoch
        self._used = dict.fromkeys(totals, 0)
        self._gpus = Gpus(gpus, totals.get("GPU", 0.0))
        self._runtime_env = runtime_env
        self._tokens = 0  # CPU tokens that this machine holds
        self._cpus_wanted = 0
        self._waiting = Waiting()
        self._held = Hold(self._waiting)
        self._precedence = Precedence(self._waiting)
        self._blocked = 0  # leases that wait for others
        self._lasting = 0  # CPUs that actors and placement groups have, in units
        self._running: dict[Proc, None] = {}  # or about to: see Deaths
        self._idle_leased: list[Proc] = []
        self._leases: dict[Proc, set[Proc]] = {}  # owner -> workers
        self._making: dict[tuple[Proc, int], Proc] = {}  # task -> its worker to be
        self._busy_leases = 0  # that run, and do not wait for others
        self._ending: set[Proc] = set()  # have been told to
        self._deaths = Deaths(self._running, self._free_place)
        self._retiring: set[Proc] = set()  # end with the last actor that they own
        self.actors = Actors()
        self._groups: dict[str, GroupWanted] = {}  # placement groups not yet removed
        self._created: set[str] = set()
        self._placed: dict[str, set[Proc]] = {}  # placement group -> who holds of it

    # Queries -----------------------------------------------------------------

    def room_for(self, kind: Kind, *, restart: bool = False) -> str:
        """Why there can be no further process of the kind now; "": there can."""
        free = len(self._free) + self._max_procs - self._next_index
        kept = self._kept // 2 if kind == "pool" else self._kept
        if free <= (0 if restart else kept):
            most = self._max_procs - 1 - self._kept
            return (
                f"a session has at most {most} workers, actors and tasks with "
                "resources of their own at a time. Drop handles of actors that are no "
                "longer needed, or put the work of several actors into one"
            )
        return self._limit("pool" if restart else kind)

    def comes_free(self) -> bool:
        """Whether some process is about to end, or its place to be free."""
        return bool(self._ending or self._places_of_the_dead())

    def allocate(self, kind: Kind, *, restart: bool = False) -> Proc | None:
        """A name for a new process; None: ``room_for`` says why."""
        if self.room_for(kind, restart=restart):
            return None
        if self._free:
            index = self._free.pop(0)
        else:
            index = self._next_index
            self._next_index += 1
        proc = Proc(index, self._epochs.get(index, self._first_epoch - 1) + 1)
        self._epochs[index] = proc.epoch
        self.members[proc] = _Member(kind)
        if kind == "driver":
            self._running[proc] = None
        return proc

    @property
    def num_places(self) -> int:
        """No process is at an index from this on, and nothing is to be read of one."""
        return self._next_index

    def kind(self, proc: Proc) -> Kind | None:
        member = self.members.get(proc)
        return member.kind if member else None

    def pending(self) -> list[Proc]:
        """Processes that others may send to, and that do not run yet."""
        if len(self.members) == len(self._running):
            return []
        return [proc for proc in self.members if proc not in self._running]

    def assigned(self, proc: Proc) -> dict[str, float]:
        """What the task or the actor in ``proc`` holds."""
        member = self.members[proc]
        return {"CPU": 1.0} if member.kind == "pool" else dict(member.resources)

    def available(self, free_tokens: int) -> dict[str, float]:
        """Amounts that are not in use; ``free_tokens`` are those of the pool."""
        left = {
            k: total - self._used[k]
            for k, total in self._totals.items()
            if group_of([k]) is None
        }
        tokens = (free_tokens + self._tokens) * UNIT
        left["CPU"] = max(0, tokens - self._used["CPU"])
        return in_amounts(left)

    def waiting(self) -> list[Request]:
        """Requests that were not granted yet, oldest first."""
        return list(self._waiting)

    def find_waiting(
        self, *, task: int | None = None, actor: int | None = None
    ) -> tuple[Request, int] | None:
        """A task's request, or that of the actor in a place; how many are before it."""
        return self._waiting.find(task=task, actor=actor)

    def held_for(self) -> tuple[Request, float] | None:
        """What the pool stands back for while CPUs are idle, and for how long."""
        first = self._first_lacking_cpus()
        if not self._cpus_wanted or first is None or not self._collects(first):
            return None
        return first, self._held.seconds

    def fewest_missing(self) -> int:
        """CPU tokens that the smallest request for CPUs lacks; 0: there is none."""
        most = self._totals["CPU"] - self._used["CPU"]
        smallest = self._waiting.least_lacking("CPU")
        if smallest is None or smallest.units["CPU"] > most:
            return 0
        return self._lacking_cpus(smallest)

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
        """``take`` and ``news``, for one event alone."""
        return [*self.take(event), *self.news()]

    def news(self) -> list[Command]:
        """Of all the deaths that were taken since the last time."""
        commands = self._deaths.ask()
        return self._with_places(commands) if commands else []

    def take(self, event: Event) -> list[Command]:
        """What to do at once; others hear of deaths with the next ``news``."""
        commands = self._take(event)
        for command in commands:
            if isinstance(command, Kill) and command.proc in self.members:
                self._deaths.doom(command.proc)
        return commands

    def _take(self, event: Event) -> list[Command]:
        match event:
            case WorkerWanted(active, starting):
                if starting or active >= max(1, self._totals["CPU"] // UNIT):
                    return []
                return self._fork_pool()
            case LeaseWanted(owner, task, resources, env):
                if owner not in self.members:
                    return []
                asker, depth = self._asker(owner)
                request = Request(
                    resources, env, owner=owner, task=task, asker=asker, depth=depth
                )
                self._waiting.add(request)
                return self._schedule(cpus_as_before=True)
            case ActorWanted(owner, proc, request):
                self.actors.add(request, owner, proc)
                needs, env = request.resources, request.runtime_env
                asker, depth = self._asker(owner)
                self._waiting.add(
                    Request(needs, env, actor=proc, asker=asker, depth=depth)
                )
                return [Prepare(proc, "actor"), *self._schedule(cpus_as_before=True)]
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
                if actor.proc != told:  # restarted meanwhile, it has not been told
                    return [self._kill_actor(actor, Cause.OUT_OF_SCOPE)]
                return self._make_no_more(actor)
            case ActorUnreached(actor_id):
                actor = self.actors.get(actor_id)
                return [] if actor is None else self._make_no_more(actor)
            case ActorKilled(actor_id, no_restart):
                actor = self.actors.get(actor_id)
                if actor is None:
                    return []
                actor.may_restart &= not no_restart
                return [self._kill_actor(actor)]
            case GroupWanted():
                self._groups[event.group] = event
                if not event.never:
                    self._waiting.add(Request(total(event.bundles), group=event))
                return self._schedule(cpus_as_before=True)
            case GroupRemoved(group):
                return self._remove_group(group)
            case LeaseDropped(owner, task):
                self._waiting.drop_task(owner, task)
                worker = self._making.pop((owner, task), None)
                if worker is not None:  # it is used for another, when it has been made
                    self.members[worker].request = None
                return self._schedule()
            case LeaseDone(worker, is_worn_out):
                return self._end_lease(worker, is_worn_out)
            case Blocked(proc) | Unblocked(proc):
                return self._set_blocked(proc, isinstance(event, Blocked))
            case CpuFree():
                self._waiting.wake("CPU")
                return self._schedule()
            case CpusTaken(count):
                self._tokens += count
                if count:
                    self._waiting.wake("CPU")
                # Of what is left, free ones are no news to anybody.
                return self._schedule(took=not count)
            case HoldOver(number):
                over = self._held.over(number, self._used["CPU"])
                if over and self._held.is_pools_turn():
                    self._precedence.end_turn()
                return [*over, *self._schedule()]
            case Forked(proc):
                return self._forked(proc)
            case NotForked():
                return self._not_forked(event)
            case RoomAgain():
                self._waiting.wake(PROCESS)
                return self._schedule()
            case RoomWanted():
                commands: list[Command] = []
                self._end_idle(commands, for_room=True)
                return commands
            case Died():
                return self._died(event)
            case Confirmed():
                return self._with_places(self._deaths.confirmed(event))
            case LetGo(dead):
                self._deaths.let_go(dead)
                return []

    # Granting ----------------------------------------------------------------

    def _schedule(
        self, *, took: bool = False, cpus_as_before: bool = False
    ) -> list[Command]:
        """Grant what fits, in order; a request that does not fit lets others pass.

        For a while: see ``precedence``.

        ``cpus_as_before``: none can have become free.
        """
        commands: list[Command] = []
        self._precedence.turn()  # of one that waits no longer: it ends before we look
        while due := self._waiting.due():
            heads = [(self._order_of(line), place) for place, line in enumerate(due)]
            heapq.heapify(heads)
            while heads:
                _, place = heads[0]
                line = due[place]
                if self._look_at(line, commands) and line.requests:
                    heapq.heapreplace(heads, (self._order_of(line), place))
                else:
                    heapq.heappop(heads)
        turn = self._begin_turn()
        first = self._first_lacking_cpus()
        missing = self._missing_cpus(first)
        # Whoever puts one back tells us, once we have said that we want it.
        asked = cpus_as_before and missing == self._cpus_wanted
        if missing and not took and not asked:
            return [*commands, TakeCpus(missing)]
        if missing != self._cpus_wanted:
            self._cpus_wanted = missing
            commands.append(WantCpus(missing))
        if first is None or not (missing or turn):
            return [*commands, *self._give_back()]
        if self._collects(first):
            commands += self._held.begin(first)
        return commands

    def _asker(self, owner: Proc) -> tuple[Proc | None, int]:
        member = self.members[owner]
        return (None if member.kind == "driver" else owner), member.depth

    def _order_of(self, line: Line) -> tuple[int, ...]:
        request = self._next_in(line)
        if request is self._precedence.turn():
            return -1, 0, 0
        return (-1, 1, request.number) if line.skipped >= GRANTS else request.order

    def _next_in(self, line: Line) -> Request:
        turn = self._precedence.turn()
        is_here = turn is not None and line.requests.get(turn.number) is turn
        if turn is not None and is_here:
            return turn
        return line.oldest if line.passed >= GRANTS else line.head

    def _begin_turn(self) -> Request | None:
        """Of the one that has waited for CPUs longest, if it is due."""
        if self._held.is_pools_turn() or not self._has_room_for_a_tree():
            return self._precedence.turn()
        most = self._totals["CPU"] - self._lasting
        cpus = self._totals["CPU"] // UNIT
        return self._precedence.begin_turn(self._blocked, cpus, most)

    def _has_room_for_a_tree(self) -> bool:
        """Whether what waits may be served out of order, and begin another tree.

        Trees that were begun may go as deep again as they have been, and need most of
        the places to end.
        """
        leases = self._blocked + self._busy_leases + len(self._idle_leased)
        places = self._reach + 1 - (len(self.members) - leases)  # for leases
        return self._blocked < max(1, places // 16)

    def _missing_cpus(self, first: Request | None) -> int:
        """Tokens of the pool that are wanted.

        What waited goes on at once; its tokens are wanted until it has them.
        """
        cpus = self._used["CPU"] + (first.units["CPU"] if first is not None else 0)
        all_there_are = self._totals["CPU"] // UNIT
        return max(0, min(tokens_for(cpus), all_there_are) - self._tokens)

    def _collects(self, first: Request) -> bool:
        """Whether CPUs are idle for it until it has enough of them."""
        return first.units["CPU"] > self._next_token() or self._precedence.has_denied

    def _first_lacking_cpus(self) -> Request | None:
        """Whom the pool stands back for.

        The next one that can start when it does: for one that lacks what a lease or an
        actor holds, it would stand back in vain. But whose turn it is waits for leases,
        too.
        """
        turn = self._precedence.turn()
        if turn is not None:
            return turn
        most = self._totals["CPU"] - self._used["CPU"]
        if self._held.is_pools_turn():
            # One more token is used as soon as it is free: no CPU is idle for that.
            most = min(most, self._next_token())
        return self._waiting.first_lacking("CPU", most)

    def _next_token(self) -> int:
        """What can be had with one token more than are in use."""
        used = self._used["CPU"]
        return (tokens_for(used) + 1) * UNIT - used

    def _look_at(self, line: Line, commands: list[Command]) -> bool:
        """Grant to the head of the line; False: it must wait, and the line with it."""
        request = self._next_in(line)
        removed = line.placement is not None and line.placement not in self._groups
        lacks = "" if removed else self._lacks(request)
        if not lacks and self._is_pools_turn(request):
            self._tokens -= 1
            commands.append(ServePool())
            lacks = self._lacks(request)
        if lacks == "CPU" and self._lacking_cpus(request) == 0:
            self._precedence.has_denied = True
        if not lacks and not self._grant(request, removed, commands):
            lacks = PROCESS
        if lacks:
            # For CPUs there are turns.
            ages = lacks != "CPU" and (lacks != PROCESS or self._has_room_for_a_tree())
            self._waiting.block(line, lacks, ages=ages)
            if lacks != "CPU" and request is self._precedence.turn():
                self._precedence.end_turn()
            return False
        line.passed = line.passed + 1 if line.ages and request is not line.oldest else 0
        line.skipped = 0
        self._waiting.take(request)
        self._held.granted(request)
        self._precedence.granted(request)
        return True

    def _is_pools_turn(self, request: Request) -> bool:
        """Whether a token that could be the request's is the pool's."""
        return (
            bool(request.units.get("CPU"))
            and self._tokens > tokens_for(self._used["CPU"])
            and not self._collects(request)
            and self._pool_waits()
            and self._precedence.take_pools_turn()
        )

    def _lacks(self, request: Request) -> str:
        """The first resource of which too little is free; "": none."""
        for name, amount in request.units.items():
            if name == "CPU":
                continue
            there = self._totals.get(name)
            if there is None or self._used[name] + amount > there:
                return name
        if request.group is not None:
            has_gpus = self._gpus.can_open(request.group.bundles)
        else:
            has_gpus = self._gpus.find(request.resources) is not None
        if not has_gpus:
            group = group_of(request.resources)
            return "GPU" if group is None else f"GPU_group_{group}"
        has_cpus = self._lacking_cpus(request) == 0
        return "" if has_cpus and not self._precedence.denies(request) else "CPU"

    def _lacking_cpus(self, request: Request) -> int:
        cpus = request.units.get("CPU", 0)
        if cpus <= 0:
            return 0
        return max(0, tokens_for(self._used["CPU"] + cpus) - self._tokens)

    def _grant(self, request: Request, removed: bool, commands: list[Command]) -> bool:
        """False: it must wait for a process.

        ``removed``: its placement group was. A task is refused; an actor, which others
        may call already, is dead.
        """
        if request.group is not None:
            self._create_group(request.group)
            return True
        if request.actor is not None:
            if removed:
                commands += self._refuse_actor(request.actor)
            else:
                commands.append(self._make(request.actor, request))
            return True
        assert request.owner is not None
        if removed:
            commands.append(RefuseLease(request.owner, request.task, None))
            return True
        idle = self._idle_for(request)
        if idle is not None:
            self._hold(idle, request)
            commands.append(GrantLease(request.owner, request.task, idle))
            return True
        worker = self.allocate("lease")
        if worker is not None:
            commands.append(self._make(worker, request))
            self._making[request.owner, request.task] = worker
            return True
        if self._some_worker_will_end(commands):
            return False
        why = self.room_for("lease")
        commands.append(RefuseLease(request.owner, request.task, why))
        return True

    def _some_worker_will_end(self, commands: list[Command]) -> bool:
        """Whether there will be room for another. Idle ones are made to end."""
        self._end_idle(commands, for_room=True)
        return self.comes_free() or self._busy_leases != 0

    def _end_idle(self, commands: list[Command], *, for_room: bool = False) -> None:
        """Those that are too many, or in the way of others."""
        while self._idle_leased and (
            len(self._idle_leased) > _MAX_IDLE_LEASED
            or (for_room and self.room_for("lease"))
        ):
            commands += self._end(self._idle_leased.pop(0))

    def _refuse_actor(self, proc: Proc) -> list[Command]:
        """It ends before it has a process, as if that had said why."""
        why = "the actor is dead: its placement group was removed."
        note = KeepNote(proc.packed, why)
        return [note, Kill(proc, Cause.CONSTRUCTOR_FAILED)]

    def _make(self, proc: Proc, request: Request) -> Fork:
        self._hold(proc, request)
        member = self.members[proc]
        member.request = request
        self._running[proc] = None
        return Fork(proc, member.kind, request.runtime_env, member.gpus.ids)

    def _hold(self, proc: Proc, request: Request) -> None:
        share = self._gpus.find(request.resources)
        assert share is not None
        member = self.members[proc]
        member.runtime_env = request.runtime_env
        member.gpus = share
        self._gpus.take(share)
        member.resources = request.resources
        member.units = request.units
        member.granted = True
        member.placement = group_of(member.resources)
        if member.placement is not None:
            self._placed.setdefault(member.placement, set()).add(proc)
        for name, amount in member.units.items():
            self._used[name] += amount
        if member.kind == "actor":
            self._lasting += member.units.get("CPU", 0)
        if request.owner is not None:
            member.lease_owner = request.owner
            member.depth = request.depth + 1
            self._leases.setdefault(request.owner, set()).add(proc)
            self._busy_leases += 1

    def _forked(self, proc: Proc) -> list[Command]:
        member = self.members.get(proc)
        if member is None or member.kind != "lease":
            return []
        if proc in self._ending:  # its request will wait again
            return []
        request, member.request = member.request, None
        if request is None:  # the task was cancelled meanwhile
            return self._end_lease(proc)
        assert request.owner is not None
        del self._making[request.owner, request.task]
        return [GrantLease(request.owner, request.task, proc)]

    def _not_forked(self, event: NotForked) -> list[Command]:
        if event.proc not in self.members:
            return []
        detail = event.proc.packed
        died = Died(event.proc, Cause.NO_PROCESS, detail)
        return [KeepNote(detail, event.why), *self._died(died)]

    def _idle_for(self, request: Request) -> Proc | None:
        """An idle worker with the request's runtime environment."""
        if any(name.startswith("GPU") for name in request.resources):
            return None
        for proc in reversed(self._idle_leased):
            fits = self.members[proc].runtime_env == request.runtime_env
            # A task that is given to a dead worker has failed, though it never ran.
            if fits and self._lives(proc):
                self._idle_leased.remove(proc)
                return proc
        return None

    def _release(self, proc: Proc, member: _Member) -> None:
        if not member.granted:
            return
        member.granted = False
        self._gpus.give(member.gpus)
        for name, amount in member.units.items():
            lent = member.blocked and lends(name)
            if not lent and name in self._used:  # else of a group that was removed
                self._used[name] -= amount
                self._waiting.wake(name)
        if member.kind == "actor":
            self._lasting -= member.units.get("CPU", 0)
        if member.lease_owner is not None:
            self._blocked -= member.blocked
            self._busy_leases -= not member.blocked
            _discard(self._leases, member.lease_owner, proc)
            member.lease_owner = None
        if member.placement is not None:
            _discard(self._placed, member.placement, proc)
            member.placement = None
        member.blocked = False

    def _give_back(self) -> list[Command]:
        spare = self._tokens - tokens_for(self._used["CPU"])
        if spare <= 0:
            return []
        self._tokens -= spare
        return [GiveCpus(spare)]

    def _end_lease(self, worker: Proc, is_worn_out: bool = False) -> list[Command]:
        member = self.members.get(worker)
        if member is None or not member.granted or member.kind != "lease":
            return []
        self._release(worker, member)
        self._waiting.wake(PROCESS)
        commands: list[Command] = []
        if worker in self._ending:
            pass
        elif member.gpus.ids or is_worn_out:
            # Its CUDA_VISIBLE_DEVICES was for one task, or it ends by itself.
            commands += self._end(worker)
        else:
            self._idle_leased.append(worker)
        commands += self._schedule()
        self._end_idle(commands)
        return commands

    def _end(self, worker: Proc) -> list[Command]:
        """End a worker that is of no use, now or with the last actor that it owns."""
        self._retiring.add(worker)
        return self._retire(worker)

    def _retire(self, worker: Proc) -> list[Command]:
        if worker not in self._retiring or self.actors.owned_by(worker):
            return []
        self._retiring.discard(worker)
        self._ending.add(worker)
        return [Retire(worker)]

    def _kill(self, procs: Collection[Proc]) -> list[Command]:
        self._ending.update(procs)
        return [Kill(proc) for proc in sorted(procs)]

    def _kill_actor(self, actor: Actor, cause: Cause = Cause.KILLED) -> Kill:
        # One that waits is dead at once, also if what it waits for becomes free before
        # we hear of that: it must not be started any more.
        self._waiting.drop_actor(actor.proc)
        return Kill(actor.proc, cause)

    def _make_no_more(self, actor: Actor) -> list[Command]:
        """End an actor that nobody can reach, if it waits: it holds back others."""
        waits = self._waiting.drop_actor(actor.proc)
        return [self._kill_actor(actor, Cause.OUT_OF_SCOPE)] if waits else []

    def _set_blocked(self, proc: Proc, blocked: bool) -> list[Command]:
        member = self.members.get(proc)
        if member is None or not member.granted or member.blocked == blocked:
            return []
        member.blocked = blocked
        if member.lease_owner is not None:
            self._blocked += 1 if blocked else -1
            self._busy_leases += -1 if blocked else 1
            self._waiting.wake(PROCESS)  # it may not end any more, while it waits
        for name, amount in member.units.items():
            if lends(name) and name in self._used:
                # Going on may use more CPUs than there are, until the pool or another
                # lease puts one back.
                self._used[name] += -amount if blocked else amount
                if blocked:
                    self._waiting.wake(name)
        return self._schedule()

    # Placement groups --------------------------------------------------------

    def _create_group(self, wanted: GroupWanted) -> None:
        for name, amount in in_units(total(wanted.bundles)).items():
            self._used[name] += amount
            self._lasting += amount if name == "CPU" else 0
        self._gpus.open(wanted.group, wanted.bundles)
        added = in_units(set_aside(wanted.group, wanted.bundles))
        self._totals.update(added)
        self._used.update(dict.fromkeys(added, 0))
        self._created.add(wanted.group)
        for name in added:
            self._waiting.wake(name)

    def _remove_group(self, group: str) -> list[Command]:
        wanted = self._groups.pop(group, None)
        if wanted is None:
            return []
        self._waiting.drop_group(group)
        if group in self._created:
            self._created.discard(group)
            self._gpus.close(group)
            for name, amount in in_units(total(wanted.bundles)).items():
                self._used[name] -= amount
                self._lasting -= amount if name == "CPU" else 0
                self._waiting.wake(name)
            for name in set_aside(group, wanted.bundles):
                del self._totals[name], self._used[name]
        self._waiting.wake_placement(group)
        kills = self._kill(self._placed.get(group, ()))
        return [*kills, *self._schedule()]

    # Deaths ------------------------------------------------------------------

    def _fork_pool(self) -> list[Command]:
        proc = self.allocate("pool")
        if proc is None:
            return []
        self._running[proc] = None
        return [Fork(proc, "pool", self._runtime_env)]

    def _died(self, event: Died) -> list[Command]:
        dead = event.proc
        member = self.members.pop(dead, None)
        if member is None:
            return []
        self._running.pop(dead, None)
        commands = self._give_up_work_of(dead, member)
        commands += [
            self._kill_actor(actor, Cause.OWNER_ENDED)
            for actor in self.actors.owned_by(dead)
        ]
        actor = self.actors.at(dead)
        successor = None
        if actor is not None:
            successor, event = self._restart_or_end(actor, event, commands)
        commands += self._deaths.add(event, successor)
        self._waiting.wake(PROCESS)
        return [*commands, *self._schedule()]

    def _give_up_work_of(self, dead: Proc, member: _Member) -> list[Command]:
        """What it held is free, and what it asked for is of no use."""
        owner = member.lease_owner
        self._release(dead, member)
        if dead in self._idle_leased:
            self._idle_leased.remove(dead)
        self._retiring.discard(dead)
        self._ending.discard(dead)
        self._waiting.drop_owner(dead)
        self._waiting.drop_actor(dead)
        request = member.request
        if request is not None and owner is not None:  # its owner was told nothing yet
            del self._making[owner, request.task]
            if owner in self.members:
                self._waiting.add(request, first=True)
        # They run tasks whose results nobody wants, or are being made for them.
        workers = self._leases.get(dead, ())
        for worker in workers:
            request = self.members[worker].request
            if request is not None:
                del self._making[dead, request.task]
                self.members[worker].request = None
        return self._kill(workers)

    def _restart_or_end(
        self, actor: Actor, event: Died, commands: list[Command]
    ) -> tuple[Proc | None, Died]:
        """The process that takes its place, and what to tell of the death."""
        if actor.restarts_after(event.cause):
            successor = self.allocate("actor", restart=True)
            if successor is not None:
                actor.cause, actor.detail = event.cause, event.detail
                self.actors.move(actor, successor)
                request = actor.request
                # It had its resources before.
                self._waiting.add(
                    Request(request.resources, request.runtime_env, actor=successor),
                    first=True,
                )
                commands.append(Prepare(successor, "actor"))
                return successor, event
            detail = event.proc.packed
            why = f"it cannot be restarted: {self.room_for('actor', restart=True)}."
            commands.append(KeepNote(detail, why))
            event = event._replace(cause=Cause.NO_PROCESS, detail=detail)
        actor.cause, actor.detail = event.cause, event.detail
        self.actors.end(actor)
        commands += self._retire(actor.owner)
        return None, event

    def _places_of_the_dead(self) -> int:
        return self._next_index - _DRIVER_INDEX - len(self._free) - len(self.members)

    def _free_place(self, dead: Proc) -> None:
        bisect.insort(self._free, dead.index)
        while self._free and self._free[-1] == self._next_index - 1:
            self._next_index = self._free.pop()
        self._waiting.wake(PROCESS)

    def _with_places(self, commands: list[Command]) -> list[Command]:
        return [*commands, *self._schedule(cpus_as_before=True)]


def _discard(table: dict[Any, set[Proc]], key: Any, proc: Proc) -> None:
    values = table[key]
    values.discard(proc)
    if not values:
        del table[key]
