"""The supervisor's policy under random events; tokens and rings are kept beside it.

As in the supervisor, who is killed before its process was begun is dead at once: in the
middle of the commands of which one killed it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from skate._amounts import UNIT, units
from skate._placement import group_of
from skate.engine.embedded.actors import ActorRequest
from skate.engine.embedded.events import (
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
    Fork,
    Forked,
    GiveCpus,
    GrantLease,
    GroupRemoved,
    GroupWanted,
    HoldOver,
    Kill,
    LeaseDone,
    LeaseDropped,
    LeaseWanted,
    LetGo,
    NotForked,
    Prepare,
    Recycle,
    RefuseLease,
    RoomAgain,
    ServePool,
    TakeCpus,
    TellDied,
    TellForget,
    TimeHold,
    Unblocked,
    WantCpus,
    WorkerWanted,
)
from skate.engine.embedded.lifecycle import Lifecycle
from skate.engine.embedded.processes import Cause, Proc
from skate.engine.embedded.turns import Turns
from skate.engine.protocol import ActorState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from skate.engine.embedded.actors import Actor

TOTALS = {"CPU": 4.0, "GPU": 1.0, "robot": 2.0}
PLACES = 16
AHEAD = 2  # orders that are with the zygote, and cannot be withdrawn

Task = tuple[Proc, int]


class Machine(RuleBasedStateMachine):
    """Random events; what the supervisor and the processes would do is done here."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False  # the machine gives no process
        self.pool_waits = self.hope_is_gone = False
        self.ended: set[Proc] = set()  # and nobody has told of it so far
        self.life = Lifecycle(
            TOTALS,
            PLACES,
            gpus=[0],
            limit=lambda kind: "full" if self.full else "",
            lives=lambda proc: proc not in self.ended,
            pool_waits=lambda: self.pool_waits,
        )
        self.turns = Turns(self.life, self.carry_out)
        driver = self.life.allocate("driver")
        assert driver is not None
        self.driver = driver
        self.free_tokens = 4
        self.held_tokens = 0
        self.pool_tokens = 0  # that pool workers have
        self.cpus_wanted = 0
        self.timer = TimeHold(0, 0.0)  # the last that was wanted
        self.timer_runs = False
        self.tasks = 0
        self.wanted: dict[Task, dict[str, float]] = {}  # neither granted nor refused
        self.running: dict[Proc, Task] = {}
        self.needs: dict[Proc, dict[str, float]] = {}
        self.blocked: set[Proc] = set()
        self.making: list[Proc] = []  # ordered, and no answer yet
        self.waits: set[Proc] = set()  # prepared, and not ordered
        self.left: dict[int, int] = {}  # actor -> restarts; negative: no limit
        self.forked_for_a_lease: set[Proc] = set()  # and it was not granted yet
        self.prepared: set[Proc] = set()
        self.doomed: dict[Proc, Cause] = {}  # were killed
        self.dead: set[Proc] = set()
        # Actors whose processes died in this turn, and their restarts before that.
        self.lost: list[tuple[Actor, int, Any]] = []
        self.seen: set[Proc] = set()
        self.groups: dict[str, dict[str, float]] = {}  # and what each has set aside
        # Deaths: who was asked and has not answered, and who holds something.
        self.asked: set[tuple[Proc, Proc]] = set()
        self.holders: dict[Proc, set[Proc]] = {}  # the dead that are not recycled
        self.undrained: dict[Proc, set[Proc]] = {}  # that may have unread rings

    def do(self, event: Any) -> None:
        self.turns.tell(event)
        self.settle()

    def settle(self) -> None:
        self.turns.tell_news()
        lost, self.lost = self.lost, []
        for actor, restarts, last in lost:
            self.check_restart(actor, restarts, last)

    def carry_out(self, command: Command) -> None:
        match command:
            case TakeCpus(wanted):
                taken = min(wanted, self.free_tokens)
                self.free_tokens -= taken
                self.held_tokens += taken
                self.turns.tell(CpusTaken(taken))
            case WantCpus(count):
                self.cpus_wanted = count
                if count and self.free_tokens:
                    self.turns.tell(CpuFree())
            case GiveCpus(count):
                self.free_tokens += count
                self.held_tokens -= count
            case ServePool():
                assert self.pool_waits
                assert self.life._waiting
                if self.hope_is_gone:
                    self.turns.tell(CpusTaken(1))
                else:
                    self.held_tokens -= 1
                    self.pool_tokens += 1
                self.pool_waits = False
            case TimeHold(_, seconds, cpus):
                # The pool's turn is as long as the hold was that it follows.
                if cpus:
                    assert self.timer.seconds == seconds
                assert 1 <= seconds <= 60
                self.timer, self.timer_runs = command, True
            case GrantLease(owner, task, worker):
                assert worker in self.life.members
                assert worker not in self.making
                assert worker not in self.running
                assert worker not in self.ended
                self.needs[worker] = self.wanted.pop((owner, task))
                self.running[worker] = owner, task
                if worker not in self.forked_for_a_lease:
                    self.check_cpus(self.needs[worker])
                self.forked_for_a_lease.discard(worker)
            case RefuseLease(owner, task, why):
                group = group_of(self.wanted.pop((owner, task)))
                is_removed = group is not None and group not in self.life._groups
                assert why is None if is_removed else why
            case Prepare(proc):
                self.is_new(proc)
                self.prepared.add(proc)
                self.waits.add(proc)
            case Fork(proc, kind):
                assert proc not in self.dead
                if kind == "actor":
                    assert proc in self.prepared
                    assert self.life.actors.at(proc) is not None
                    group = group_of(self.life.members[proc].resources)
                    assert group is None or group in self.life._groups
                else:
                    self.is_new(proc)
                assert proc not in self.making
                self.waits.discard(proc)
                self.making.append(proc)
                if kind == "lease":
                    self.forked_for_a_lease.add(proc)
                    self.check_cpus(self.life.members[proc].resources)
            case TellDied(to, dead, _, _, successor, place_is_free):
                assert successor is None or successor in self.prepared
                assert (to, dead) not in self.asked
                assert to not in self.doomed
                self.asked.add((to, dead))
                # Until all have read its rings, and not a moment longer.
                assert place_is_free == (dead not in self.undrained)
            case TellForget(_, dead, step):
                if step == 0:
                    assert not self.undrained.pop(dead, set())
            case Kill(proc, cause):
                self.doomed.setdefault(proc, cause)
                if proc in self.waits or proc in self.making[AHEAD:]:
                    self.has_died(proc, Died(proc, self.doomed[proc], 0))
            case Recycle(dead):
                assert not self.holders.pop(dead)
                self.undrained.pop(dead, None)

    def is_new(self, proc: Proc) -> None:
        """Its name was never used, and nobody reads rings of that place."""
        assert proc not in self.seen
        self.seen.add(proc)
        live = [p.index for p in self.life.members]
        assert live.count(proc.index) == 1
        assert proc.index not in {p.index for p, left in self.undrained.items() if left}
        assert proc.index < PLACES

    def check_cpus(self, needs: Mapping[str, float]) -> None:
        """Of a task whose start has just been decided.

        To go on after a wait may use more for a moment, also between the decision and
        the moment when a process for the task is there; to start may not.
        """
        if needs.get("CPU"):
            to_come = sum(
                units(self.wanted[task].get("CPU", 0.0)) for task in self.life._making
            )
            assert units(self.used("CPU")) + to_come <= self.held_tokens * UNIT

    def some(self, data: st.DataObject, of: Any) -> Any:
        return data.draw(st.sampled_from(sorted(of)))

    # Work --------------------------------------------------------------------

    @rule(active=st.integers(0, 4))
    def want_worker(self, active: int) -> None:
        self.do(WorkerWanted(active, starting=False))

    @rule(
        data=st.data(),
        cpus=st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.7, 1.0, 3.0]),
        robots=st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0, 2.0]),
        gpus=st.sampled_from([0.0, 0.0, 0.1, 0.3, 0.5, 1.0]),
        count=st.sampled_from([1, 1, 1, 4]),
    )
    def want_leases(
        self, data: st.DataObject, cpus: float, robots: float, gpus: float, count: int
    ) -> None:
        needs = {k: v for k, v in zip(TOTALS, (cpus, gpus, robots), strict=True) if v}
        for _ in range(count):
            self.ask_for(data, needs)

    @precondition(lambda self: self.groups)
    @rule(data=st.data(), resource=st.sampled_from(["robot", "GPU", "CPU"]))
    def want_lease_in_a_group(self, data: st.DataObject, resource: str) -> None:
        group = self.some(data, self.groups)
        if resource in self.groups[group]:
            of_group = f"{resource}_group_{group}"
            self.ask_for(data, {f"bundle_group_{group}": 0.001, of_group: 0.1})

    def ask_for(self, data: st.DataObject, needs: dict[str, float]) -> None:
        self.tasks += 1
        owner = self.some(data, self.begun())
        self.wanted[owner, self.tasks] = needs
        self.do(LeaseWanted(owner, self.tasks, needs))

    @precondition(lambda self: self.wanted)
    @rule(data=st.data())
    def drop_lease(self, data: st.DataObject) -> None:
        task = self.some(data, self.wanted)
        del self.wanted[task]
        self.do(LeaseDropped(*task))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), is_worn_out=st.booleans())
    def end_lease(self, data: st.DataObject, is_worn_out: bool) -> None:
        self.has_run(self.some(data, self.running), is_worn_out)

    def has_run(self, worker: Proc, is_worn_out: bool = False) -> None:
        self.has_ended(worker)
        self.do(LeaseDone(worker, is_worn_out))

    def has_ended(self, worker: Proc) -> None:
        self.running.pop(worker, None)
        self.needs.pop(worker, None)
        self.blocked.discard(worker)

    def can_wait(self) -> set[Proc]:
        """Workers that run a leased task, and actors."""
        return {*self.running} | ({a.proc for a in self.life.actors} & self.begun())

    @precondition(lambda self: self.can_wait())
    @rule(data=st.data())
    def block_or_go_on(self, data: st.DataObject) -> None:
        worker = self.some(data, self.can_wait())
        event = Unblocked if worker in self.blocked else Blocked
        self.blocked ^= {worker}
        self.do(event(worker))

    @precondition(lambda self: self.free_tokens and not self.cpus_wanted)
    @rule()
    def take_a_cpu(self) -> None:
        self.free_tokens -= 1
        self.pool_tokens += 1

    @precondition(lambda self: self.pool_tokens)
    @rule()
    def free_a_cpu(self) -> None:
        self.free_tokens += 1
        self.pool_tokens -= 1
        if self.cpus_wanted:
            self.do(CpuFree())

    @precondition(lambda self: self.cpus_wanted)
    @rule(is_gone=st.booleans())
    def the_pool_sees_work(self, is_gone: bool) -> None:
        self.pool_waits, self.hope_is_gone = True, is_gone

    @precondition(lambda self: self.timer_runs)
    @rule()
    def end_the_hold_or_the_pools_turn(self) -> None:
        was_hold, self.timer_runs = not self.timer.cpus, False
        self.do(HoldOver(self.timer.number))
        if was_hold and self.life._held.is_pools_turn():
            assert self.idle_and_held() == 0

    @rule(back=st.integers(1, 3))
    def hear_of_the_end_of_an_earlier_hold(self, back: int) -> None:
        self.do(HoldOver(self.timer.number - back))

    @rule()
    def hear_of_a_cpu_that_is_gone_again(self) -> None:
        self.do(CpuFree())

    @rule(
        number=st.integers(1, 5),
        robots=st.sampled_from([0.1, 0.3, 1.0, 2.0]),
        gpus=st.sampled_from([0.0, 0.1, 1.0]),
        cpus=st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0]),
        never=st.sampled_from([False, False, True]),
    )
    def want_group(
        self, number: int, robots: float, gpus: float, cpus: float, never: bool
    ) -> None:
        group = f"g{number}x{len(self.groups)}"
        if group not in self.groups:
            needs = {"robot": robots, "GPU": gpus, "CPU": cpus}
            bundle = {name: amount for name, amount in needs.items() if amount}
            self.groups[group] = bundle
            self.do(GroupWanted(group, (bundle,), never))

    @precondition(lambda self: self.groups)
    @rule(data=st.data())
    def remove_group(self, data: st.DataObject) -> None:
        self.do(GroupRemoved(self.some(data, self.groups)))

    # Processes ---------------------------------------------------------------

    def begun(self) -> set[Proc]:
        """Those that run, and so can ask for something."""
        return set(self.life.members) - self.waits - {*self.making}

    @precondition(lambda self: self.making)
    @rule()
    def forked(self) -> None:
        self.do(Forked(self.making.pop(0)))

    @precondition(lambda self: self.making)
    @rule()
    def not_forked(self) -> None:
        proc = self.making[0]
        cause = self.doomed.get(proc)
        self.is_dead(proc, Died(proc, cause, 0) if cause else NotForked(proc, "none"))

    @rule(full=st.booleans())
    def limit(self, full: bool) -> None:
        self.full = full
        if not full:
            self.do(RoomAgain())

    @rule(
        data=st.data(),
        max_restarts=st.sampled_from([0, 1, -1]),
        is_detached=st.booleans(),
        robots=st.sampled_from([0.0, 1.0, 2.0]),
        cpus=st.sampled_from([0.0, 1.0, 4.0]),
    )
    def want_actor(
        self,
        data: st.DataObject,
        max_restarts: int,
        is_detached: bool,
        robots: float,
        cpus: float,
    ) -> None:
        owner = self.some(data, self.begun())
        self.make_actor(
            owner, {"robot": robots, "CPU": cpus}, max_restarts, is_detached
        )

    @precondition(lambda self: self.groups)
    @rule(data=st.data(), max_restarts=st.sampled_from([0, -1]))
    def want_actor_in_a_group(self, data: st.DataObject, max_restarts: int) -> None:
        group = self.some(data, self.groups)
        needs = {f"bundle_group_{group}": 0.001, f"robot_group_{group}": 0.1}
        self.make_actor(self.some(data, self.begun()), needs, max_restarts, False)

    @rule(
        data=st.data(),
        max_restarts=st.sampled_from([0, -1]),
        robots=st.tuples(st.sampled_from([1.0, 2.0]), st.sampled_from([0.0, 2.0])),
        cpus=st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0, 4.0])),
        blocked=st.booleans(),
    )
    def actor_dies_that_owns_another(
        self,
        data: st.DataObject,
        max_restarts: int,
        robots: tuple[float, float],
        cpus: tuple[float, float],
        blocked: bool,
    ) -> None:
        """The other may wait for what the first had."""
        needs, others = (
            {"robot": r, "CPU": c} for r, c in zip(robots, cpus, strict=True)
        )
        first = self.make_actor(self.driver, needs, max_restarts, False)
        while first in self.making:
            self.forked()
        if first is None or first not in self.begun():
            return
        self.make_actor(first, others, 0, False)
        if blocked:
            self.blocked.add(first)
            self.do(Blocked(first))
        self.kill(data, first)

    def make_actor(
        self,
        owner: Proc,
        needs: dict[str, float],
        max_restarts: int,
        is_detached: bool,
    ) -> Proc | None:
        proc = self.life.allocate("actor")
        assert (proc is None) == bool(self.life.room_for("actor")) or proc is not None
        if proc is None:
            return None
        self.tasks += 1
        request = ActorRequest(
            self.tasks,
            "A",
            name=("", str(self.tasks)),
            resources={name: amount for name, amount in needs.items() if amount},
            max_restarts=max_restarts,
            is_detached=is_detached,
        )
        self.left[self.tasks] = max_restarts
        self.do(ActorWanted(owner, proc, request))
        return proc

    @precondition(lambda self: self.left)
    @rule(data=st.data(), no_restart=st.booleans())
    def kill_actor(self, data: st.DataObject, no_restart: bool) -> None:
        actor = self.some(data, self.left)
        if no_restart:
            self.left[actor] = 0
        self.do(ActorKilled(actor, no_restart))

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def drop_last_handle(self, data: st.DataObject) -> None:
        actor_id = self.some(data, self.left)
        actor = self.life.actors.get(actor_id)
        if actor is not None:
            self.left[actor_id] = 0
            self.do(ActorUnwanted(actor_id, actor.proc))
            self.check_does_not_wait(actor)

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def drop_last_handle_of_one_that_may_wait(self, data: st.DataObject) -> None:
        actor = self.life.actors.get(self.some(data, self.left))
        if actor is not None:
            self.do(ActorUnreached(actor.request.actor_id))
            self.check_does_not_wait(actor)

    def check_does_not_wait(self, actor: Actor) -> None:
        assert all(request.actor != actor.proc for request in self.life.waiting())

    # Deaths ------------------------------------------------------------------

    @precondition(lambda self: len(self.life.members) > 1)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        self.kill(data, self.some(data, set(self.life.members) - {self.driver}))

    @precondition(lambda self: self.life._idle_leased)
    @rule(data=st.data())
    def idle_worker_ends_unheard(self, data: st.DataObject) -> None:
        self.ended.add(self.some(data, self.life._idle_leased))

    def kill(self, data: st.DataObject, proc: Proc) -> None:
        waits = sorted(set(self.life.pending()) - {proc})
        unread = data.draw(st.sets(st.sampled_from(waits))) if waits else set()
        cause = self.doomed.get(proc, Cause.SIGNALED)
        event = Died(proc, cause, 9, frozenset(unread))
        self.is_dead(proc, event)

    def is_dead(self, proc: Proc, event: Any) -> None:
        self.has_died(proc, event)
        self.settle()

    def has_died(self, proc: Proc, event: Any) -> None:
        unread = event.unread_by if isinstance(event, Died) else frozenset()
        if proc in self.making:
            self.making.remove(proc)
        self.waits.discard(proc)
        self.dead.add(proc)
        self.has_ended(proc)
        for task in [task for task in self.wanted if task[0] == proc]:
            del self.wanted[task]
        self.asked = {(to, dead) for to, dead in self.asked if to != proc}
        for holders in (*self.holders.values(), *self.undrained.values()):
            holders.discard(proc)
        self.holders[proc] = set()
        running = set(self.life.members) - set(self.life.pending()) - self.dead
        self.undrained[proc] = running | unread
        actor = self.life.actors.at(proc)
        if actor is not None:
            self.lost.append((actor, actor.num_restarts, event))
        self.turns.tell(event)

    def check_restart(self, actor: Actor, restarts: int, event: Any) -> None:
        actor_id = actor.request.actor_id
        if actor.num_restarts > restarts:
            assert self.left[actor_id] != 0
            assert isinstance(event, Died)
            self.left[actor_id] -= 1
            return
        meant = {
            Cause.NO_PROCESS,
            Cause.OWNER_ENDED,
            Cause.OUT_OF_SCOPE,
            Cause.CONSTRUCTOR_FAILED,
        }
        assert self.left[actor_id] == 0 or actor.cause in meant
        assert self.life.actors.named(("", str(actor_id))) is None

    def can_answer(self) -> list[tuple[Proc, Proc]]:
        waits = set(self.life.pending()) | {*self.making}
        return [(to, dead) for to, dead in self.asked if to not in waits]

    @precondition(lambda self: self.can_answer())
    @rule(data=st.data(), holds=st.booleans())
    def confirm(self, data: st.DataObject, holds: bool) -> None:
        to, dead = self.some(data, self.can_answer())
        is_first = to in self.undrained.get(dead, ())
        self.answer(to, dead, holds and is_first)

    def answer(self, to: Proc, dead: Proc, holds: bool) -> None:
        self.asked.discard((to, dead))
        self.undrained.get(dead, set()).discard(to)
        if holds:
            self.holders[dead].add(to)
        held = to in self.holders[dead]
        self.do(Confirmed(to, dead, held, held))

    @precondition(lambda self: any(self.holders.values()))
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        dead = self.some(data, [d for d, holders in self.holders.items() if holders])
        self.let_go_of(dead, self.some(data, self.holders[dead]))

    def let_go_of(self, dead: Proc, by: Proc) -> None:
        self.holders[dead].discard(by)
        self.do(LetGo(dead))

    # What always holds -------------------------------------------------------

    @invariant()
    def no_resource_is_given_twice(self) -> None:
        assert self.used("robot") <= TOTALS["robot"]
        assert self.used("GPU") <= TOTALS["GPU"]
        assert self.free_tokens + self.held_tokens + self.pool_tokens == 4
        assert self.held_tokens == self.life._tokens

    @invariant()
    def the_pool_stands_back_for_what_can_start_then(self) -> None:
        assert self.cpus_wanted == self.life._cpus_wanted
        assert self.cpus_wanted <= self.free_tokens + self.pool_tokens

    @invariant()
    def no_cpu_is_free_that_is_wanted(self) -> None:
        """Only who puts one back tells of it: those that are there would stay."""
        assert not (self.cpus_wanted and self.free_tokens)

    @invariant()
    def plain_tasks_are_not_held_back_for_ever(self) -> None:
        """CPUs are idle for others only while a timer runs that ends that."""
        if self.idle_and_held() > 0:
            assert self.timer_runs
            assert not self.timer.cpus
        if self.life._held.is_pools_turn():
            assert self.timer_runs
            assert self.cpus_wanted <= max(1, self.owed())

    @invariant()
    def what_went_on_after_a_wait_has_cpus_again_as_soon_as_one_is_free(self) -> None:
        owed = min(self.owed(), self.free_tokens + self.pool_tokens)
        assert self.cpus_wanted >= owed
        if owed > 0:
            assert not self.free_tokens

    def owed(self) -> int:
        return -self.idle_and_held()

    def idle_and_held(self) -> int:
        return self.held_tokens - -(-self.life._used["CPU"] // UNIT)

    def used(self, name: str) -> float:
        """What running leases use; while one is blocked, its CPUs are not used."""
        counted = (
            units(needs.get(name, 0.0))
            for worker, needs in self.needs.items()
            if name != "CPU" or worker not in self.blocked
        )
        return sum(counted) / UNIT

    @invariant()
    def every_request_is_granted_or_refused_or_waits(self) -> None:
        waits = {(r.owner, r.task) for r in self.life.waiting() if r.owner is not None}
        assert waits | self.life._making.keys() == self.wanted.keys()
        assert not waits & self.life._making.keys()

    @invariant()
    def what_waits_lacks_something(self) -> None:
        """The oldest that needs no CPU and no process would be granted if it fits."""
        for request in self.life.waiting():
            if request.actor is not None:
                assert self.life._lacks(request)

    @invariant()
    def a_live_actor_has_a_live_process(self) -> None:
        for actor in self.life.actors:
            assert (actor.proc in self.life.members) == (
                actor.state is not ActorState.DEAD
            )

    @invariant()
    def nobody_looks_at_places_above_those_in_use(self) -> None:
        in_use = self.life.members.keys() | self.undrained.keys()
        assert self.life.num_places == 1 + max(proc.index for proc in in_use)

    @invariant()
    def the_dead_are_kept_while_somebody_is_asked_or_holds_something(self) -> None:
        waiting = {dead for _, dead in self.asked}
        # Who was killed is not asked, but waited for.
        doomed = self.doomed.keys() & self.life.members.keys()
        assert all(self.holders[d] or d in waiting or doomed for d in self.holders)
        assert len(self.life._deaths) == len(self.holders)

    def drain(self) -> None:
        """All that runs ends; then all is had that waits for what that had."""
        for _ in range(1_000):
            ending = {*self.life._ending, *self.doomed} & self.life.members.keys()
            ending -= {*self.making}
            if self.blocked:
                proc = min(self.blocked)
                self.blocked.discard(proc)
                self.do(Unblocked(proc))
            elif self.making:
                self.forked()
            elif self.running:
                self.has_run(next(iter(self.running)))
            elif ending:
                proc = min(ending)
                self.is_dead(proc, Died(proc, self.doomed.get(proc, Cause.EXITED), 0))
            elif can_answer := self.can_answer():
                self.answer(*min(can_answer), holds=False)
            elif self.groups:
                group, _ = self.groups.popitem()
                self.do(GroupRemoved(group))
            elif self.wanted and self.timer_runs:
                self.end_the_hold_or_the_pools_turn()
            else:
                return
            self.no_cpu_is_free_that_is_wanted()
        raise AssertionError(f"what waits is never had: {self.wanted}")

    def teardown(self) -> None:
        """When all has ended, nothing is left: no table, no resource, no place."""
        self.full = self.pool_waits = False
        self.do(RoomAgain())
        while self.pool_tokens:
            self.free_a_cpu()
        for proc in sorted(set(self.life.members) - {self.driver}):
            if proc in self.life.members:
                actor = self.life.actors.at(proc)
                if actor is not None:
                    self.left[actor.request.actor_id] = 0
                    self.do(ActorKilled(actor.request.actor_id, no_restart=True))
        self.drain()
        while others := sorted(set(self.life.members) - {self.driver}):
            cause = self.doomed.get(others[0], Cause.SIGNALED)
            self.is_dead(others[0], Died(others[0], cause, 9))
        while self.asked or any(self.holders.values()):
            for to, dead in sorted(self.asked):
                self.answer(to, dead, holds=False)
            for dead, holders in list(self.holders.items()):
                for by in sorted(holders):
                    self.let_go_of(dead, by)
        assert not self.wanted
        assert not self.life.waiting()
        assert self.life.available(self.free_tokens) == TOTALS
        assert self.free_tokens == 4
        assert self.life._places_of_the_dead() == 0
        assert self.life.num_places == 1 + self.driver.index
        assert self.life._used == dict.fromkeys(TOTALS, 0)
        life, kept = self.life, {"_totals", "members", "_used", "_running"}
        parts = (life, life._waiting, life._deaths, life.actors, life._gpus)
        left = {
            f"{type(part).__name__}.{name}": value
            for part in parts
            for name, value in vars(part).items()
            if isinstance(value, (dict, set, list)) and value
        }
        assert life.members.keys() == {self.driver}
        assert {name.rpartition(".")[2] for name in left} <= kept | {"_free", "_epochs"}


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
