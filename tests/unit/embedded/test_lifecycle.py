"""The supervisor's policy, fed with events; no process is started."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from skate._runtime_env import check_runtime_env
from skate.engine.embedded.actors import ActorRequest
from skate.engine.embedded.lifecycle import (
    ActorConstructed,
    ActorKilled,
    ActorUnwanted,
    ActorWanted,
    Blocked,
    Confirmed,
    CpuFree,
    CpusTaken,
    Died,
    Fork,
    GiveCpus,
    GrantLease,
    Kill,
    LeaseDone,
    LeaseWanted,
    LetGo,
    Lifecycle,
    Prepare,
    Recycle,
    TakeCpus,
    TellDied,
    TellForget,
    Unblocked,
    WantCpus,
    WorkerWanted,
)
from skate.engine.embedded.processes import Cause, Proc
from skate.engine.protocol import ActorState

TOTALS = {"CPU": 4.0, "GPU": 1.0, "robot": 2.0}


def new_process(life: Lifecycle, kind: str = "pool") -> Proc:
    proc = life.allocate(kind)
    assert proc is not None
    return proc


@pytest.fixture
def life() -> Lifecycle:
    life = Lifecycle(TOTALS, max_procs=64, gpus=[0])
    new_process(life, "driver")
    return life


def test_a_worker_is_forked_while_fewer_than_the_cpus_are_active(
    life: Lifecycle,
) -> None:
    (fork,) = life.handle(WorkerWanted(active=3, starting=False))
    assert isinstance(fork, Fork)
    assert fork.kind == "pool"
    assert life.handle(WorkerWanted(active=4, starting=False)) == []
    assert life.handle(WorkerWanted(active=1, starting=True)) == []


def test_a_lease_that_needs_no_cpu_is_granted_at_once(life: Lifecycle) -> None:
    driver = Proc(1, 1)
    fork, grant = life.handle(LeaseWanted(driver, 7, {"robot": 1.0}))
    assert isinstance(fork, Fork)
    assert fork.kind == "lease"
    assert grant == GrantLease(driver, 7, fork.proc)


def test_leases_share_a_resource_and_the_third_waits(life: Lifecycle) -> None:
    driver = Proc(1, 1)
    first = life.handle(LeaseWanted(driver, 1, {"robot": 1.0}))
    life.handle(LeaseWanted(driver, 2, {"robot": 1.0}))
    assert life.handle(LeaseWanted(driver, 3, {"robot": 1.0})) == []
    (grant,) = life.handle(LeaseDone(first[0].proc))
    assert grant == GrantLease(driver, 3, first[0].proc)  # the idle worker is reused


def test_a_lease_takes_cpus_from_the_pool_and_gives_them_back(
    life: Lifecycle,
) -> None:
    driver = Proc(1, 1)
    assert life.handle(LeaseWanted(driver, 1, {"CPU": 2.0})) == [TakeCpus(2)]
    assert life.handle(CpusTaken(1)) == [WantCpus(1)]
    assert life.handle(CpuFree()) == [TakeCpus(1)]
    commands = life.handle(CpusTaken(1))
    (fork,) = [c for c in commands if isinstance(c, Fork)]
    assert WantCpus(0) in commands
    assert life.handle(LeaseDone(fork.proc)) == [GiveCpus(2)]


def test_a_blocked_lease_lends_its_cpus(life: Lifecycle) -> None:
    life.handle(LeaseWanted(Proc(1, 1), 1, {"CPU": 2.0}))
    commands = life.handle(CpusTaken(2))
    (fork,) = [c for c in commands if isinstance(c, Fork)]
    assert life.handle(Blocked(fork.proc)) == [GiveCpus(2)]
    assert life.handle(Unblocked(fork.proc)) == []  # it goes on at once
    assert life.handle(LeaseDone(fork.proc)) == []  # its CPUs are the pool's already


def test_a_worker_that_saw_a_gpu_is_not_reused(life: Lifecycle) -> None:
    fork, _ = life.handle(LeaseWanted(Proc(1, 1), 1, {"GPU": 1.0}))
    assert Kill(fork.proc) in life.handle(LeaseDone(fork.proc))


def test_gpus_are_handed_out_by_id_and_come_back() -> None:
    life = Lifecycle({"CPU": 1.0, "GPU": 2.0}, max_procs=64, gpus=["a", "b"])
    driver = new_process(life, "driver")
    first, _ = life.handle(LeaseWanted(driver, 1, {"GPU": 1.0}))
    second, _ = life.handle(LeaseWanted(driver, 2, {"GPU": 1.0}))
    assert (first.gpus, second.gpus) == (("a",), ("b",))
    assert life.handle(LeaseWanted(driver, 3, {"GPU": 0.5})) == []
    commands = life.handle(LeaseDone(first.proc))
    (third,) = [c for c in commands if isinstance(c, Fork)]
    assert third.gpus == ("a",)


def test_an_idle_worker_is_reused_in_its_own_environment_only(life: Lifecycle) -> None:
    driver = Proc(1, 1)
    env = check_runtime_env("runtime_env", {"env_vars": {"A": "1"}})
    fork, _ = life.handle(LeaseWanted(driver, 1, {"robot": 1.0}, env))
    assert fork.runtime_env == env
    life.handle(LeaseDone(fork.proc))
    plain, _ = life.handle(LeaseWanted(driver, 2, {"robot": 1.0}))
    assert plain.proc != fork.proc
    (grant,) = life.handle(LeaseWanted(driver, 3, {"robot": 1.0}, env))
    assert grant == GrantLease(driver, 3, fork.proc)


def test_of_idle_workers_the_longest_idle_goes_first(life: Lifecycle) -> None:
    driver = Proc(1, 1)
    forks = []
    for number in range(5):
        env = check_runtime_env("runtime_env", {"env_vars": {"A": f"{number}"}})
        fork, _ = life.handle(LeaseWanted(driver, number, {"robot": 1.0}, env))
        forks.append(fork)
        commands = life.handle(LeaseDone(fork.proc))
    assert commands == [Kill(forks[0].proc)]


def test_borrows_of_the_dead_go_only_when_all_have_drained_its_rings(
    life: Lifecycle,
) -> None:
    driver, dead, other = Proc(1, 1), new_process(life), new_process(life)
    assert life.handle(Died(dead, 2, 9)) == [
        TellDied(driver, dead, 2, 9),
        TellDied(other, dead, 2, 9),
    ]
    assert life.handle(Confirmed(driver, dead, False, False)) == []
    assert life.handle(Confirmed(other, dead, False, False)) == [
        TellForget(driver, dead, 0),
        TellForget(other, dead, 0),
        TellDied(driver, dead, 2, 9),
        TellDied(other, dead, 2, 9),
    ]
    assert life.handle(Confirmed(driver, dead, False, False)) == []
    assert life.handle(Confirmed(other, dead, False, False)) == [
        TellForget(driver, dead, 2),
        TellForget(other, dead, 2),
        Recycle(dead),
    ]
    again = new_process(life)
    assert again.index == dead.index
    assert again.epoch != dead.epoch


def test_an_index_is_kept_while_somebody_reads_its_memory(life: Lifecycle) -> None:
    driver, dead = Proc(1, 1), new_process(life)
    life.handle(Died(dead, 1, 0))
    told = life.handle(Confirmed(driver, dead, True, True))
    assert told == [TellForget(driver, dead, 0)]
    asked = [TellDied(driver, dead, 1, 0)]
    assert life.handle(LetGo(dead)) == asked
    assert life.handle(Confirmed(driver, dead, False, True)) == asked
    assert life.handle(Confirmed(driver, dead, False, True)) == [
        TellForget(driver, dead, 1)
    ]
    assert life.handle(LetGo(dead)) == asked
    assert life.handle(Confirmed(driver, dead, False, False)) == asked
    assert life.handle(Confirmed(driver, dead, False, False)) == [
        TellForget(driver, dead, 2),
        Recycle(dead),
    ]


def test_what_passed_to_a_process_that_had_answered_is_still_held(
    life: Lifecycle,
) -> None:
    giver, taker, dead = Proc(1, 1), new_process(life), new_process(life)
    life.handle(Died(dead, 1, 0))

    def answers(by: Proc, *, came_by: bool = False) -> list[object]:
        return life.handle(Confirmed(by, dead, False, False, came_by))

    assert answers(taker) == []
    asked = [TellDied(giver, dead, 1, 0), TellDied(taker, dead, 1, 0)]
    assert answers(giver)[-2:] == asked  # it has just passed on what it held
    assert answers(giver) == []
    assert answers(taker, came_by=True) == asked
    assert answers(giver) == []
    assert answers(taker) == asked
    assert answers(giver) == []
    assert Recycle(dead) in answers(taker)


def test_who_held_the_last_of_the_dead_lets_go_of_it_by_dying(
    life: Lifecycle,
) -> None:
    driver, dead, holder = Proc(1, 1), new_process(life), new_process(life)
    life.handle(Died(dead, 2, 9))
    life.handle(Confirmed(driver, dead, False, False))
    told = life.handle(Confirmed(holder, dead, True, True))
    assert told == [TellForget(driver, dead, 0), TellForget(holder, dead, 0)]
    # The news of its own death goes ahead: what it passed on is counted by then.
    assert life.handle(Died(holder, 2, 9)) == [
        TellDied(driver, holder, 2, 9),
        TellDied(driver, dead, 2, 9),
    ]
    life.handle(Confirmed(driver, holder, False, False))
    life.handle(Confirmed(driver, dead, False, False))
    assert Recycle(dead) in life.handle(Confirmed(driver, dead, False, False))


def test_the_death_of_one_who_held_nothing_of_the_dead_asks_nobody(
    life: Lifecycle,
) -> None:
    driver, dead, other = Proc(1, 1), new_process(life), new_process(life)
    life.handle(Died(dead, 2, 9))
    life.handle(Confirmed(driver, dead, False, True))
    life.handle(Confirmed(other, dead, False, False))
    assert life.handle(Confirmed(other, dead, False, False)) == []
    life.handle(Confirmed(driver, dead, False, True))
    assert life.handle(Died(other, 2, 9)) == [TellDied(driver, other, 2, 9)]


def test_a_death_does_not_wait_for_the_word_of_one_who_dies_as_well(
    life: Lifecycle,
) -> None:
    driver, first, second = Proc(1, 1), new_process(life), new_process(life)
    life.handle(Died(first, 2, 9))
    life.handle(Confirmed(driver, first, False, False))
    commands = life.handle(Died(second, 2, 9))
    assert TellForget(driver, first, 0) in commands


def test_what_a_dead_owner_had_asked_for_is_not_started(life: Lifecycle) -> None:
    owner = new_process(life)
    life.handle(LeaseWanted(owner, 1, {"CPU": 4.0}))
    life.handle(Died(owner, Cause.SIGNALED, 9))
    assert not [c for c in life.handle(CpusTaken(4)) if isinstance(c, Fork)]


DRIVER = Proc(1, 1)


def start_actor(life: Lifecycle, owner: Proc = DRIVER, **request: object) -> Proc:
    proc = new_process(life, "actor")
    wanted = ActorRequest(1, "A", **request)  # type: ignore[arg-type]
    assert life.handle(ActorWanted(owner, proc, wanted))[0] == Prepare(proc, "actor")
    return proc


def test_news_of_a_death_names_the_process_that_takes_the_actors_place(
    life: Lifecycle,
) -> None:
    first = start_actor(life, max_restarts=1, name=("", "a"))
    life.handle(ActorConstructed(first))
    commands = life.handle(Died(first, Cause.SIGNALED, 9))
    (fork,) = [c for c in commands if isinstance(c, Fork)]
    second = fork.proc
    # Others may send to it as soon as they know its name.
    assert commands.index(Prepare(second, "actor")) < commands.index(
        TellDied(DRIVER, first, Cause.SIGNALED, 9, second)
    )
    actor = life.actors.named(("", "a"))
    assert actor is not None
    assert (actor.state, actor.num_restarts) == (ActorState.RESTARTING, 1)
    commands = life.handle(Died(second, Cause.SIGNALED, 9))
    assert TellDied(DRIVER, second, Cause.SIGNALED, 9, None) in commands
    assert life.actors.named(("", "a")) is None
    assert actor.state is ActorState.DEAD


def test_a_restarted_actor_waits_for_its_resources_before_others(
    life: Lifecycle,
) -> None:
    first = start_actor(life, max_restarts=-1, resources={"robot": 2.0})
    life.handle(LeaseWanted(DRIVER, 7, {"robot": 1.0}))
    commands = life.handle(Died(first, Cause.EXITED, 1))
    (fork,) = [c for c in commands if isinstance(c, Fork)]
    assert fork.kind == "actor"


@pytest.mark.parametrize(
    "cause", [Cause.ACTOR_EXIT, Cause.OUT_OF_SCOPE, Cause.CONSTRUCTOR_FAILED]
)
def test_an_end_that_is_meant_is_final(life: Lifecycle, cause: Cause) -> None:
    first = start_actor(life, max_restarts=-1)
    commands = life.handle(Died(first, cause, 0))
    assert not [c for c in commands if isinstance(c, Fork)]


def test_a_kill_for_good_is_final_and_another_is_not(life: Lifecycle) -> None:
    first = start_actor(life, max_restarts=-1)
    assert life.handle(ActorKilled(1, no_restart=False)) == [Kill(first)]
    commands = life.handle(Died(first, Cause.KILLED, 9))
    (fork,) = [c for c in commands if isinstance(c, Fork)]
    assert life.handle(ActorKilled(1, no_restart=True)) == [Kill(fork.proc)]
    commands = life.handle(Died(fork.proc, Cause.KILLED, 9))
    assert not [c for c in commands if isinstance(c, Fork)]


def test_an_actor_that_lost_its_last_handle_in_a_restart_is_ended(
    life: Lifecycle,
) -> None:
    first = start_actor(life, max_restarts=-1)
    commands = life.handle(Died(first, Cause.SIGNALED, 9))
    (fork,) = [c for c in commands if isinstance(c, Fork)]
    # The owner told the process that it still thought to be the actor's.
    ended = life.handle(ActorUnwanted(1, told=first))
    assert ended == [Kill(fork.proc, Cause.OUT_OF_SCOPE)]


def test_actors_end_with_their_owner_unless_they_are_detached(
    life: Lifecycle,
) -> None:
    owner = new_process(life)
    mortal = start_actor(life, owner)
    kept = new_process(life, "actor")
    life.handle(ActorWanted(owner, kept, ActorRequest(2, "B", is_detached=True)))
    commands = life.handle(Died(owner, Cause.SIGNALED, 9))
    kills = [c for c in commands if isinstance(c, Kill)]
    assert kills == [Kill(mortal, Cause.OWNER_ENDED)]


def test_a_worker_that_owns_actors_is_kept_until_they_have_ended(
    life: Lifecycle,
) -> None:
    fork, _ = life.handle(LeaseWanted(DRIVER, 1, {"GPU": 1.0}))
    assert isinstance(fork, Fork)
    actor = start_actor(life, fork.proc)
    assert Kill(fork.proc) not in life.handle(LeaseDone(fork.proc))
    assert Kill(fork.proc) in life.handle(Died(actor, Cause.OUT_OF_SCOPE, 0))


class Machine(RuleBasedStateMachine):
    """Random events; tokens are kept as the session directory would."""

    def __init__(self) -> None:
        super().__init__()
        self.life = Lifecycle(TOTALS, max_procs=64, gpus=[0])
        self.driver = new_process(self.life, "driver")
        self.free_tokens = 4
        self.held_tokens = 0
        self.running: dict[Proc, dict[str, float]] = {}
        self.blocked: set[Proc] = set()
        self.wanted: dict[int, dict[str, float]] = {}
        self.unconfirmed: set[tuple[Proc, Proc]] = set()
        self.dead: set[Proc] = set()
        self.tasks = 0
        self.left: dict[int, int] = {}  # actor -> restarts; negative: no limit
        self.prepared: set[Proc] = set()

    def carry_out(self, commands: list[object]) -> None:
        for command in commands:
            if isinstance(command, TakeCpus):
                taken = min(command.cpus, self.free_tokens)
                self.free_tokens -= taken
                self.held_tokens += taken
                self.carry_out(self.life.handle(CpusTaken(taken)))
            elif isinstance(command, GiveCpus):
                self.free_tokens += command.cpus
                self.held_tokens -= command.cpus
            elif isinstance(command, GrantLease):
                needs = self.wanted.pop(command.task)
                self.running[command.worker] = needs
                # Going on after a wait may oversubscribe for a moment, starting may
                # not.
                if needs.get("CPU"):
                    assert self.used("CPU") <= self.held_tokens
            elif isinstance(command, Prepare):
                assert command.proc not in self.prepared
                self.prepared.add(command.proc)
            elif isinstance(command, Fork) and command.kind == "actor":
                assert command.proc in self.prepared
                assert self.life.actors.at(command.proc) is not None
            elif isinstance(command, TellDied):
                assert command.successor is None or command.successor in self.prepared
                self.unconfirmed.add((command.to, command.dead))
            elif isinstance(command, Recycle):
                assert command.proc in self.dead
                self.dead.discard(command.proc)

    @rule(
        cpus=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        robots=st.sampled_from([0.0, 1.0, 2.0]),
    )
    def want_lease(self, cpus: float, robots: float) -> None:
        self.tasks += 1
        needs = {k: v for k, v in {"CPU": cpus, "robot": robots}.items() if v}
        self.wanted[self.tasks] = needs
        self.carry_out(self.life.handle(LeaseWanted(self.driver, self.tasks, needs)))

    @rule()
    def free_a_cpu(self) -> None:
        self.carry_out(self.life.handle(CpuFree()))

    @rule(
        data=st.data(),
        max_restarts=st.sampled_from([0, 1, -1]),
        is_detached=st.booleans(),
        robots=st.sampled_from([0.0, 1.0]),
    )
    def want_actor(
        self, data: st.DataObject, max_restarts: int, is_detached: bool, robots: float
    ) -> None:
        owner = data.draw(st.sampled_from(sorted(self.life.members, key=str)))
        proc = self.life.allocate("actor")
        if proc is None:
            return
        self.tasks += 1
        request = ActorRequest(
            self.tasks,
            "A",
            name=("", str(self.tasks)),
            resources={"robot": robots} if robots else {},
            max_restarts=max_restarts,
            is_detached=is_detached,
        )
        self.left[self.tasks] = max_restarts
        self.carry_out(self.life.handle(ActorWanted(owner, proc, request)))

    @precondition(lambda self: self.left)
    @rule(data=st.data(), no_restart=st.booleans())
    def kill_actor(self, data: st.DataObject, no_restart: bool) -> None:
        actor = data.draw(st.sampled_from(sorted(self.left)))
        self.carry_out(self.life.handle(ActorKilled(actor, no_restart)))
        if no_restart and self.life.actors.get(actor) is not None:
            self.left[actor] = 0

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def drop_last_handle(self, data: st.DataObject) -> None:
        actor_id = data.draw(st.sampled_from(sorted(self.left)))
        actor = self.life.actors.get(actor_id)
        if actor is not None:
            self.carry_out(self.life.handle(ActorUnwanted(actor_id, actor.proc)))
            self.left[actor_id] = 0

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end_lease(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.running, key=str)))
        del self.running[worker]
        self.blocked.discard(worker)
        self.carry_out(self.life.handle(LeaseDone(worker)))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def block_or_go_on(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.running, key=str)))
        event = Unblocked if worker in self.blocked else Blocked
        self.blocked ^= {worker}
        self.carry_out(self.life.handle(event(worker)))

    @precondition(lambda self: len(self.life.members) > 1)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        mortal = sorted(set(self.life.members) - {self.driver}, key=str)
        proc = data.draw(st.sampled_from(mortal))
        self.running.pop(proc, None)
        self.blocked.discard(proc)
        self.dead.add(proc)
        self.unconfirmed = {(to, d) for to, d in self.unconfirmed if to != proc}
        actor = self.life.actors.at(proc)
        self.tell_died(proc)
        if actor is not None:
            actor_id = actor.request.actor_id
            restarted = self.life.actors.get(actor_id) is not None
            assert restarted == (self.left[actor_id] != 0)
            if restarted:
                self.left[actor_id] -= 1
            else:
                assert self.life.actors.named(("", str(actor_id))) is None

    def tell_died(self, proc: Proc) -> None:
        self.carry_out(self.life.handle(Died(proc, Cause.SIGNALED, 9)))

    @precondition(lambda self: self.unconfirmed)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        to, dead = data.draw(st.sampled_from(sorted(self.unconfirmed, key=str)))
        self.unconfirmed.discard((to, dead))
        self.carry_out(self.life.handle(Confirmed(to, dead, False, False)))

    @invariant()
    def no_resource_is_given_twice(self) -> None:
        assert self.used("robot") <= TOTALS["robot"]
        assert self.free_tokens + self.held_tokens == 4

    def used(self, name: str) -> float:
        """What running leases use; while one is blocked, its CPUs are not used."""
        return sum(
            needs.get(name, 0.0)
            for worker, needs in self.running.items()
            if name != "CPU" or worker not in self.blocked
        )

    @invariant()
    def a_live_actor_has_a_live_process(self) -> None:
        for actor in self.life.actors:
            assert (actor.proc in self.life.members) == (
                actor.state is not ActorState.DEAD
            )

    @invariant()
    def every_death_is_settled_once_all_have_confirmed(self) -> None:
        waiting = {dead for _, dead in self.unconfirmed}
        assert self.dead <= waiting


TestMachine = Machine.TestCase
