"""The supervisor's policy, fed with events; no process is started."""

from __future__ import annotations

import sys
from typing import Any

import pytest

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from skate._runtime_env import check_runtime_env
from skate.engine.embedded.actors import ActorRequest
from skate.engine.embedded.events import (
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
    Recycle,
    RefuseLease,
    Retire,
    RoomAgain,
    RoomWanted,
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
from skate.engine.protocol import ActorState

TOTALS = {"CPU": 4.0, "GPU": 1.0, "robot": 2.0}


def new_process(life: Lifecycle, kind: str = "pool") -> Proc:
    proc = life.allocate(kind)
    assert proc is not None
    return proc


def new_worker(life: Lifecycle) -> Proc:
    (fork,) = life.handle(WorkerWanted(active=0, starting=False))
    assert isinstance(fork, Fork)
    return fork.proc


def lease(life: Lifecycle, owner: Proc, task: int, *needs: Any) -> Fork:
    """A task that gets a new worker at once."""
    commands = life.handle(LeaseWanted(owner, task, *needs))
    (fork,) = [c for c in commands if isinstance(c, Fork)]
    assert life.handle(Forked(fork.proc)) == [GrantLease(owner, task, fork.proc)]
    return fork


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
    (fork,) = life.handle(LeaseWanted(driver, 7, {"robot": 1.0}))
    assert isinstance(fork, Fork)
    assert fork.kind == "lease"
    # Only of a process that has been made: else the task would be lost with it.
    assert life.handle(Forked(fork.proc)) == [GrantLease(driver, 7, fork.proc)]


def test_leases_share_a_resource_and_the_third_waits(life: Lifecycle) -> None:
    driver = Proc(1, 1)
    first = lease(life, driver, 1, {"robot": 1.0})
    lease(life, driver, 2, {"robot": 1.0})
    assert life.handle(LeaseWanted(driver, 3, {"robot": 1.0})) == []
    (grant,) = life.handle(LeaseDone(first.proc))
    assert grant == GrantLease(driver, 3, first.proc)  # the idle worker is reused


def test_a_lease_takes_cpus_from_the_pool_and_gives_them_back(
    life: Lifecycle,
) -> None:
    driver = Proc(1, 1)
    assert life.handle(LeaseWanted(driver, 1, {"CPU": 2.0})) == [TakeCpus(2)]
    assert life.handle(CpusTaken(1)) == [TakeCpus(1)]
    assert life.handle(CpusTaken(0)) == [WantCpus(1), TimeHold(1, 1.0)]
    assert life.handle(CpuFree()) == [TakeCpus(1)]
    commands = life.handle(CpusTaken(1))
    (fork,) = [c for c in commands if isinstance(c, Fork)]
    assert WantCpus(0) in commands
    assert life.handle(LeaseDone(fork.proc)) == [GiveCpus(2)]


def test_no_task_is_given_to_an_idle_worker_of_whose_end_nobody_has_told() -> None:
    ended: set[Proc] = set()
    life = Lifecycle(TOTALS, max_procs=64, lives=lambda proc: proc not in ended)
    driver = new_process(life, "driver")
    first = lease(life, driver, 1, {"robot": 1.0})
    life.handle(LeaseDone(first.proc))
    ended.add(first.proc)
    second = lease(life, driver, 2, {"robot": 1.0})
    assert second.proc != first.proc


def test_a_blocked_lease_lends_its_cpus(life: Lifecycle) -> None:
    life.handle(LeaseWanted(Proc(1, 1), 1, {"CPU": 2.0}))
    commands = life.handle(CpusTaken(2))
    (fork,) = [c for c in commands if isinstance(c, Fork)]
    assert life.handle(Blocked(fork.proc)) == [GiveCpus(2)]
    # It goes on at once, and has its CPUs again as the pool puts them back.
    assert life.handle(Unblocked(fork.proc)) == [TakeCpus(2)]
    assert life.handle(CpusTaken(1)) == [TakeCpus(1)]
    assert life.handle(CpusTaken(0)) == [WantCpus(1)]
    assert life.handle(CpuFree()) == [TakeCpus(1)]
    assert life.handle(CpusTaken(1)) == [WantCpus(0)]
    assert life.handle(LeaseDone(fork.proc)) == [GiveCpus(2)]


def test_a_worker_that_saw_a_gpu_is_not_reused(life: Lifecycle) -> None:
    fork = lease(life, Proc(1, 1), 1, {"GPU": 1.0})
    assert Retire(fork.proc) in life.handle(LeaseDone(fork.proc))


def test_the_pool_and_a_request_for_many_cpus_have_turns(life: Lifecycle) -> None:
    driver = Proc(1, 1)
    assert life.handle(LeaseWanted(driver, 1, {"CPU": 4.0})) == [TakeCpus(4)]
    number = 0
    for seconds in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        # An endless task has one.
        assert life.handle(CpusTaken(3)) == [TakeCpus(1)]
        held = life.handle(CpusTaken(0))
        assert held == [WantCpus(1), TimeHold(number + 1, seconds)]
        assert life.held_for() == (life.waiting()[0], seconds)
        turn = TimeHold(number + 2, seconds, 4)
        assert life.handle(HoldOver(number + 1)) == [turn, WantCpus(0), GiveCpus(3)]
        assert life.held_for() is None
        # One that needs a single CPU holds none that is idle, and is not held up.
        assert life.handle(LeaseWanted(driver, 2, {"CPU": 1.0})) == [TakeCpus(1)]
        assert life.handle(CpusTaken(0)) == [WantCpus(1)]
        assert life.handle(LeaseDropped(driver, 2)) == [WantCpus(0)]
        number += 2
        assert life.handle(HoldOver(number - 1)) == []  # of a turn that is over
        assert life.handle(HoldOver(number)) == [TakeCpus(4)]
    (fork,) = life.handle(CpusTaken(4))
    assert isinstance(fork, Fork)
    life.handle(Forked(fork.proc))
    # Another begins with a short hold.
    assert life.handle(LeaseDone(fork.proc)) == [GiveCpus(4)]
    assert life.handle(LeaseWanted(driver, 3, {"CPU": 4.0})) == [TakeCpus(4)]
    assert life.handle(CpusTaken(3)) == [TakeCpus(1)]
    assert life.handle(CpusTaken(0)) == [WantCpus(1), TimeHold(number + 1, 1.0)]


def test_gpus_are_handed_out_by_id_and_come_back() -> None:
    life = Lifecycle({"CPU": 1.0, "GPU": 2.0}, max_procs=64, gpus=["a", "b"])
    driver = new_process(life, "driver")
    first = lease(life, driver, 1, {"GPU": 1.0})
    second = lease(life, driver, 2, {"GPU": 1.0})
    assert (first.gpus, second.gpus) == (("a",), ("b",))
    assert life.handle(LeaseWanted(driver, 3, {"GPU": 0.5})) == []
    commands = life.handle(LeaseDone(first.proc))
    (third,) = [c for c in commands if isinstance(c, Fork)]
    assert third.gpus == ("a",)


def test_an_idle_worker_is_reused_in_its_own_environment_only(life: Lifecycle) -> None:
    driver = Proc(1, 1)
    env = check_runtime_env("runtime_env", {"env_vars": {"A": "1"}})
    fork = lease(life, driver, 1, {"robot": 1.0}, env)
    assert fork.runtime_env == env
    life.handle(LeaseDone(fork.proc))
    plain = lease(life, driver, 2, {"robot": 1.0})
    assert plain.proc != fork.proc
    (grant,) = life.handle(LeaseWanted(driver, 3, {"robot": 1.0}, env))
    assert grant == GrantLease(driver, 3, fork.proc)


def test_of_idle_workers_the_longest_idle_goes_first(life: Lifecycle) -> None:
    driver = Proc(1, 1)
    forks = []
    for number in range(5):
        env = check_runtime_env("runtime_env", {"env_vars": {"A": f"{number}"}})
        fork = lease(life, driver, number, {"robot": 1.0}, env)
        forks.append(fork)
        commands = life.handle(LeaseDone(fork.proc))
    assert commands == [Retire(forks[0].proc)]


def test_borrows_of_the_dead_go_only_when_all_have_drained_its_rings(
    life: Lifecycle,
) -> None:
    driver, dead, other = Proc(1, 1), new_worker(life), new_worker(life)
    assert life.handle(Died(dead, 2, 9)) == [
        TellDied(driver, dead, 2, 9),
        TellDied(other, dead, 2, 9),
    ]
    assert life.handle(Confirmed(driver, dead, False, False)) == []
    assert life.handle(Confirmed(other, dead, False, False)) == [
        TellForget(driver, dead, 0),
        TellForget(other, dead, 0),
        TellDied(driver, dead, 2, 9, place_is_free=True),
        TellDied(other, dead, 2, 9, place_is_free=True),
    ]
    assert life.handle(Confirmed(driver, dead, False, False)) == []
    assert life.handle(Confirmed(other, dead, False, False)) == [
        TellForget(driver, dead, 2),
        TellForget(other, dead, 2),
        Recycle(dead),
    ]


def test_memory_is_kept_while_somebody_reads_it_and_the_place_is_not(
    life: Lifecycle,
) -> None:
    driver, dead = Proc(1, 1), new_worker(life)
    life.handle(Died(dead, 1, 0))
    assert (
        new_process(life).index != dead.index
    )  # its rings may have been drained, or not
    told = life.handle(Confirmed(driver, dead, True, True))
    assert told == [TellForget(driver, dead, 0)]
    assert new_process(life) == Proc(dead.index, dead.epoch + 1)
    asked = [TellDied(driver, dead, 1, 0, place_is_free=True)]
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
    giver, taker, dead = Proc(1, 1), new_worker(life), new_worker(life)
    life.handle(Died(dead, 1, 0))

    def answers(by: Proc, *, came_by: bool = False) -> list[object]:
        return life.handle(Confirmed(by, dead, False, False, came_by))

    assert answers(taker) == []
    asked = [TellDied(by, dead, 1, 0, place_is_free=True) for by in (giver, taker)]
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
    driver, dead, holder = Proc(1, 1), new_worker(life), new_worker(life)
    life.handle(Died(dead, 2, 9))
    life.handle(Confirmed(driver, dead, False, False))
    told = life.handle(Confirmed(holder, dead, True, True))
    assert told == [TellForget(driver, dead, 0), TellForget(holder, dead, 0)]
    # The news of its own death goes ahead: what it passed on is counted by then.
    assert life.handle(Died(holder, 2, 9)) == [
        TellDied(driver, holder, 2, 9),
        TellDied(driver, dead, 2, 9, place_is_free=True),
    ]
    life.handle(Confirmed(driver, holder, False, False))
    life.handle(Confirmed(driver, dead, False, False))
    assert Recycle(dead) in life.handle(Confirmed(driver, dead, False, False))


def test_the_death_of_one_who_held_nothing_of_the_dead_asks_nobody(
    life: Lifecycle,
) -> None:
    driver, dead, other = Proc(1, 1), new_worker(life), new_worker(life)
    life.handle(Died(dead, 2, 9))
    life.handle(Confirmed(driver, dead, False, True))
    life.handle(Confirmed(other, dead, False, False))
    assert life.handle(Confirmed(other, dead, False, False)) == []
    life.handle(Confirmed(driver, dead, False, True))
    assert life.handle(Died(other, 2, 9)) == [TellDied(driver, other, 2, 9)]


def test_a_death_does_not_wait_for_the_word_of_one_who_dies_as_well(
    life: Lifecycle,
) -> None:
    driver, first, second = Proc(1, 1), new_worker(life), new_worker(life)
    life.handle(Died(first, 2, 9))
    life.handle(Confirmed(driver, first, False, False))
    commands = life.handle(Died(second, 2, 9))
    assert TellForget(driver, first, 0) in commands


def test_what_a_dead_owner_had_asked_for_is_not_started(life: Lifecycle) -> None:
    owner = new_worker(life)
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


@pytest.mark.parametrize("tells_it", [True, False])
def test_an_actor_that_nobody_can_reach_is_ended_if_it_waits(
    life: Lifecycle, tells_it: bool
) -> None:
    def nobody_reaches(actor_id: int, proc: Proc) -> list[Command]:
        drop = ActorUnwanted(actor_id, proc) if tells_it else ActorUnreached(actor_id)
        return life.handle(drop)

    has_it = start_actor(life, resources={"robot": 2.0})
    waits = new_process(life, "actor")
    request = ActorRequest(2, "A", resources={"robot": 2.0}, max_restarts=-1)
    life.handle(ActorWanted(DRIVER, waits, request))
    assert nobody_reaches(1, has_it) == []  # it ends by itself
    assert nobody_reaches(2, waits) == [Kill(waits, Cause.OUT_OF_SCOPE)]
    assert life.waiting() == []
    commands = life.handle(Died(waits, Cause.OUT_OF_SCOPE, 0))
    assert not [c for c in commands if isinstance(c, Prepare)]


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
    fork = lease(life, DRIVER, 1, {"GPU": 1.0})
    actor = start_actor(life, fork.proc)
    assert Retire(fork.proc) not in life.handle(LeaseDone(fork.proc))
    assert Retire(fork.proc) in life.handle(Died(actor, Cause.OUT_OF_SCOPE, 0))


# Limits -------------------------------------------------------------------------------


def small(places: int, limit: Any = lambda kind: "") -> Lifecycle:
    life = Lifecycle({"CPU": 8.0, "robot": 1e6}, places, limit=limit)
    new_process(life, "driver")
    return life


def forks(commands: list[Command]) -> list[Proc]:
    return [command.proc for command in commands if isinstance(command, Fork)]


def confirm_all(life: Lifecycle, commands: list[Command], *, holds: bool) -> None:
    """Everybody who is asked answers, until nobody is asked any more."""
    while asked := [c for c in commands if isinstance(c, TellDied)]:
        commands = []
        for told in asked:
            held = holds and told.to == DRIVER
            commands += life.handle(Confirmed(told.to, told.dead, held, held))


def test_places_are_enough_for_any_number_of_processes_one_after_the_other() -> None:
    life = small(8)
    seen = set()
    for task in range(3_000):
        fork = lease(life, DRIVER, task, {"robot": 1.0})
        assert fork.proc not in seen
        assert fork.proc.index <= 3  # the directory stays short
        seen.add(fork.proc)
        # Its memory is held for ever: that is no reason to be short of places.
        confirm_all(life, life.handle(Died(fork.proc, Cause.SIGNALED, 9)), holds=True)


def test_places_that_were_in_use_and_are_free_are_looked_at_no_more() -> None:
    life = small(64)
    first = life.num_places
    procs = [new_process(life) for _ in range(20)]
    assert life.num_places == first + 20
    for proc in procs[1:]:
        confirm_all(life, life.handle(Died(proc, Cause.SIGNALED, 9)), holds=True)
    assert life.num_places == first + 1
    assert [new_process(life) for _ in range(2)] == [
        proc._replace(epoch=2) for proc in procs[1:3]
    ]
    assert life.num_places == first + 3


def test_a_death_costs_the_same_however_many_of_the_dead_are_held() -> None:
    def calls_of_a_death(held: int) -> int:
        life = small(64)
        for task in range(held):
            proc = lease(life, DRIVER, task, {"robot": 1.0}).proc
            confirm_all(life, life.handle(Died(proc, Cause.SIGNALED, 9)), holds=True)
        proc = lease(life, DRIVER, held, {"robot": 1.0}).proc
        return count_calls(
            lambda: confirm_all(
                life, life.handle(Died(proc, Cause.SIGNALED, 9)), holds=True
            )
        )

    assert calls_of_a_death(2_000) <= calls_of_a_death(2) + 5


def count_calls(action: Any) -> int:
    """Functions entered, and lines of this package run: a cost that no clock blurs."""
    count = 0

    def trace(frame: Any, event: str, arg: object) -> Any:
        nonlocal count
        count += "embedded" in frame.f_code.co_filename
        return trace

    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(None)
    return count


def test_a_lease_costs_the_same_however_many_wait() -> None:
    def cost(waiting: int) -> int:
        life = Lifecycle({"CPU": 2.0}, 64)
        new_process(life, "driver")
        needs = {"CPU": 0.5}
        commands = life.handle(LeaseWanted(DRIVER, 0, needs))
        assert commands == [TakeCpus(1)]
        commands = life.handle(CpusTaken(2))
        (worker,) = forks(commands)
        life.handle(Forked(worker))
        for task in range(1, waiting):
            for proc in forks(life.handle(LeaseWanted(DRIVER, task, needs))):
                life.handle(Forked(proc))

        def one_more() -> None:
            life.handle(LeaseWanted(DRIVER, waiting, needs))
            life.handle(LeaseDropped(DRIVER, waiting // 2))
            (grant,) = (
                c for c in life.handle(LeaseDone(worker)) if isinstance(c, GrantLease)
            )
            assert grant.worker == worker

        return count_calls(one_more)

    assert cost(20_000) <= cost(250) + 5


def test_the_death_of_an_owner_costs_what_it_had_asked_for() -> None:
    def cost(others: int) -> int:
        life = small(64)
        owner = new_worker(life)
        life._totals["robot"] = 0
        for task in range(others):
            life.handle(LeaseWanted(DRIVER, task, {"robot": 1.0}))
        life.handle(LeaseWanted(owner, 1, {"robot": 1.0}))
        died = count_calls(lambda: life.handle(Died(owner, Cause.SIGNALED, 9)))
        assert len(life.waiting()) == others
        return died

    assert cost(5_000) <= cost(50) + 5


def test_at_the_limit_an_actor_is_refused_and_a_restart_is_not() -> None:
    life = small(16)
    procs = []
    while not life.room_for("actor"):
        procs.append(new_process(life, "actor"))
        request = ActorRequest(len(procs), "A", max_restarts=1)
        life.handle(ActorWanted(DRIVER, procs[-1], request))
    assert "at most 13" in life.room_for("actor")
    assert life.allocate("actor") is None
    commands = life.handle(Died(procs[0], Cause.SIGNALED, 9))
    assert len(forks(commands)) == 1
    confirm_all(life, commands, holds=False)
    new_worker(life)  # there is room for the pool as well


def test_an_actor_restarts_where_new_ones_may_have_no_process() -> None:
    is_short = False
    life = small(16, lambda kind: "few" if is_short and kind != "pool" else "")
    actor = start_actor(life, max_restarts=-1)
    is_short = True
    assert len(forks(life.handle(Died(actor, Cause.SIGNALED, 9)))) == 1


def test_the_only_worker_is_used_again_where_no_process_can_be_had() -> None:
    why = ""
    life = small(16, lambda kind: why)
    worker = lease(life, DRIVER, 1, {"robot": 1.0}).proc
    why = "no descriptors"
    assert life.handle(LeaseDone(worker)) == []
    commands = life.handle(LeaseWanted(DRIVER, 2, {"robot": 1.0}))
    assert commands == [GrantLease(DRIVER, 2, worker)]


def test_an_actor_that_cannot_be_restarted_says_why() -> None:
    why = ""
    life = small(16, lambda kind: why)
    first = start_actor(life, max_restarts=-1)
    why = "no descriptors"
    commands = life.handle(Died(first, Cause.SIGNALED, 9))
    (note,) = [c for c in commands if isinstance(c, KeepNote)]
    assert why in note.text
    assert TellDied(DRIVER, first, Cause.NO_PROCESS, note.detail) in commands


def test_a_lease_waits_for_a_process_while_one_will_end() -> None:
    life = small(16)
    workers = []
    while not life.room_for("lease"):
        workers.append(lease(life, DRIVER, len(workers), {"robot": 1.0}).proc)
    assert life.handle(LeaseWanted(DRIVER, 100, {"robot": 1.0})) == []
    assert life.handle(LeaseDone(workers[0])) == [GrantLease(DRIVER, 100, workers[0])]


def test_an_idle_worker_makes_room_for_one_of_another_environment() -> None:
    life = small(16)
    workers = []
    while not life.room_for("lease"):
        workers.append(lease(life, DRIVER, len(workers), {"robot": 1.0}).proc)
    env = check_runtime_env("runtime_env", {"env_vars": {"A": "1"}})
    life.handle(LeaseDone(workers[0]))
    assert life.handle(LeaseWanted(DRIVER, 100, {"robot": 1.0}, env)) == [
        Retire(workers[0])
    ]
    commands = life.handle(Died(workers[0], Cause.KILLED, 0))
    assert forks(commands) == []
    for told in [c for c in commands if isinstance(c, TellDied)]:
        commands = life.handle(Confirmed(told.to, told.dead, False, False))
    assert [proc.index for proc in forks(commands)] == [workers[0].index]


def test_idle_workers_keep_no_actor_out() -> None:
    life = small(16)
    workers = []
    while not life.room_for("lease"):
        workers.append(lease(life, DRIVER, len(workers), {"robot": 1.0}).proc)
    for worker in workers[:2]:
        assert life.handle(LeaseDone(worker)) == []
        # The first lingers, which does not keep the second from being ended.
        assert life.handle(RoomWanted()) == [Retire(worker)]
    confirm_all(life, life.handle(Died(workers[1], Cause.KILLED, 0)), holds=False)
    assert life.allocate("actor") is not None


def test_the_pool_leaves_a_place_to_an_actor_that_restarts() -> None:
    life = small(32)
    actor = start_actor(life, max_restarts=-1)
    while not life.room_for("pool"):
        new_worker(life)
    assert len(forks(life.handle(Died(actor, Cause.SIGNALED, 9)))) == 1


def test_a_lease_is_refused_if_no_process_will_end() -> None:
    life = small(16)
    while not life.room_for("actor"):
        proc = new_process(life, "actor")
        life.handle(ActorWanted(DRIVER, proc, ActorRequest(proc.index, "A")))
    (refusal,) = life.handle(LeaseWanted(DRIVER, 1, {"robot": 1.0}))
    assert isinstance(refusal, RefuseLease)
    assert "at most 13" in refusal.why


def test_leases_that_wait_for_each_other_are_refused_too() -> None:
    life = small(16)
    workers = []
    while not life.room_for("lease"):
        workers.append(lease(life, DRIVER, len(workers), {"robot": 1.0}).proc)
    assert life.handle(LeaseWanted(workers[0], 100, {"robot": 1.0})) == []
    refused = [c for w in workers for c in life.handle(Blocked(w))]
    assert [c.task for c in refused if isinstance(c, RefuseLease)] == [100]


def test_a_lease_whose_worker_cannot_be_made_waits_or_is_refused() -> None:
    why = ""
    life = small(64, lambda kind: why)
    first = lease(life, DRIVER, 1, {"robot": 1.0}).proc
    (second,) = forks(life.handle(LeaseWanted(DRIVER, 2, {"robot": 1.0})))
    why = "no process can be made"
    commands = life.handle(NotForked(second, why))
    assert not [c for c in commands if isinstance(c, (RefuseLease, GrantLease))]
    confirm_all(life, commands, holds=False)
    assert [r.task for r in life.waiting()] == [2]  # the first one will end
    commands = life.handle(Died(first, Cause.SIGNALED, 9))
    confirm_all(life, commands, holds=False)
    assert life.waiting() == []


def test_what_waits_for_a_process_goes_on_when_there_are_some_again() -> None:
    why = ""
    life = small(64, lambda kind: why)
    lease(life, DRIVER, 1, {"robot": 1.0})
    why = "none"
    assert life.handle(LeaseWanted(DRIVER, 2, {"robot": 1.0})) == []
    why = ""
    assert len(forks(life.handle(RoomAgain()))) == 1


def test_an_actor_whose_process_cannot_be_made_is_dead_and_says_why(
    life: Lifecycle,
) -> None:
    proc = start_actor(life, max_restarts=-1)
    commands = life.handle(NotForked(proc, "too many"))
    assert commands[0] == KeepNote(proc.packed, "too many")
    assert TellDied(DRIVER, proc, Cause.NO_PROCESS, proc.packed) in commands
    assert next(iter(life.actors)).state is ActorState.DEAD


def test_a_task_cancelled_while_its_worker_is_made_leaves_it_to_the_next(
    life: Lifecycle,
) -> None:
    (worker,) = forks(life.handle(LeaseWanted(DRIVER, 1, {"robot": 2.0})))
    life.handle(LeaseWanted(DRIVER, 2, {"robot": 2.0}))
    assert life.handle(LeaseDropped(DRIVER, 1)) == []
    assert life.handle(Forked(worker)) == [GrantLease(DRIVER, 2, worker)]


def test_a_process_that_does_not_run_holds_up_no_death(life: Lifecycle) -> None:
    """It has nothing in its memory, and may wait for its resources for ever."""
    waits = new_process(life, "actor")
    request = ActorRequest(1, "A", resources={"robot": 3.0})
    life.handle(ActorWanted(DRIVER, waits, request))
    assert life.pending() == [waits]
    dead = new_worker(life)
    commands = life.handle(Died(dead, Cause.SIGNALED, 9))
    assert [c.to for c in commands if isinstance(c, TellDied)] == [DRIVER]


def test_what_the_dead_had_sent_to_it_is_kept_until_it_runs(life: Lifecycle) -> None:
    (worker,) = forks(life.handle(LeaseWanted(DRIVER, 1, {"robot": 2.0})))
    waits = new_process(life, "actor")
    life.handle(
        ActorWanted(DRIVER, waits, ActorRequest(1, "A", resources={"robot": 1.0}))
    )
    dead = new_worker(life)
    commands = life.handle(Died(dead, Cause.SIGNALED, 9, unread_by=frozenset([waits])))
    assert {c.to for c in commands if isinstance(c, TellDied)} == {
        DRIVER,
        worker,
        waits,
    }
    for by in (DRIVER, worker):
        life.handle(Confirmed(by, dead, False, False))
    assert new_process(life).index > dead.index
    commands = life.handle(Confirmed(waits, dead, False, False))
    assert [c for c in commands if isinstance(c, TellForget)]
    assert new_process(life).index == dead.index


# Placement groups ---------------------------------------------------------------------


def test_a_task_of_a_removed_group_is_refused(life: Lifecycle) -> None:
    life.handle(GroupWanted("g1", ({"robot": 1.0},)))
    assert life.is_created("g1")
    needs = {"bundle_group_g1": 0.001}
    fork = lease(life, DRIVER, 1, needs)
    assert life.handle(GroupRemoved("g1")) == [Kill(fork.proc)]
    refused = [RefuseLease(DRIVER, 2, None)]
    assert life.handle(LeaseWanted(DRIVER, 2, needs)) == refused


def test_what_waits_for_a_group_is_refused_when_it_is_removed(life: Lifecycle) -> None:
    life.handle(GroupWanted("g1", ({"robot": 9.0},), never=True))
    needs = {"bundle_group_g1": 0.001}
    for task in range(1, 400):
        assert life.handle(LeaseWanted(DRIVER, task, needs)) == []
    refused = [RefuseLease(DRIVER, task, None) for task in range(1, 400)]
    assert life.handle(GroupRemoved("g1")) == refused


@pytest.mark.parametrize("waits", [True, False])
def test_an_actor_of_a_removed_group_ends_without_a_process(
    life: Lifecycle, waits: bool
) -> None:
    life.handle(GroupWanted("g1", ({"robot": 9.0},), never=True))
    if not waits:
        life.handle(GroupRemoved("g1"))
    actor = new_process(life, "actor")
    needs = {"bundle_group_g1": 0.001}
    request = ActorRequest(1, "A", resources=needs, max_restarts=-1)
    commands = life.handle(ActorWanted(DRIVER, actor, request))
    if waits:
        commands += life.handle(GroupRemoved("g1"))
    prepare, note, kill = commands
    assert prepare == Prepare(actor, "actor")
    why = "the actor is dead: its placement group was removed."
    assert note == KeepNote(actor.packed, why)
    assert kill == Kill(actor, Cause.CONSTRUCTOR_FAILED)
    assert life.waiting() == []
    commands = life.handle(Died(actor, Cause.CONSTRUCTOR_FAILED, actor.packed))
    assert not [c for c in commands if isinstance(c, Prepare)]


def test_removed_groups_leave_nothing(life: Lifecycle) -> None:
    before = table_sizes(life)
    for number in range(100):
        life.handle(GroupWanted(f"g{number}", ({"robot": 1.0, "GPU": 1.0},)))
        life.handle(GroupRemoved(f"g{number}"))
    assert table_sizes(life) == before


def table_sizes(life: Lifecycle) -> dict[str, int]:
    """How much is kept, but for what is kept of the dead on purpose."""
    parts = {
        "lifecycle": life,
        "waiting": life._waiting,
        "deaths": life._deaths,
        "actors": life.actors,
    }
    kept = {"_free", "_epochs", "_dead"}
    return {
        f"{part}.{name}": len(value)
        for part, thing in parts.items()
        for name, value in vars(thing).items()
        if name not in kept and isinstance(value, (dict, list, set))
    }


def test_deaths_at_once_are_told_once_to_those_that_live() -> None:
    life = Lifecycle({"CPU": 4.0}, 200)
    driver = new_process(life, "driver")
    actors = [new_process(life, "actor") for _ in range(100)]
    for number, actor in enumerate(actors):
        life.handle(ActorWanted(driver, actor, ActorRequest(number, "A")))
    taken: list[Command] = []
    for actor in actors[:90]:
        taken += life.take(Died(actor, Cause.OUT_OF_SCOPE, 0))
    assert not [c for c in taken if isinstance(c, TellDied)]
    told = [(c.to, c.dead) for c in life.news() if isinstance(c, TellDied)]
    assert sorted(told) == [
        (to, dead) for to in (driver, *actors[90:]) for dead in actors[:90]
    ]
    assert life.news() == []


def test_what_many_let_go_of_in_one_turn_is_asked_for_once() -> None:
    life = Lifecycle({"CPU": 4.0}, 200)
    driver, actor = new_process(life, "driver"), new_process(life, "actor")
    life.handle(ActorWanted(driver, actor, ActorRequest(1, "A")))
    life.handle(Died(actor, Cause.SIGNALED, 9))
    life.handle(Confirmed(driver, actor, True, True))
    for _ in range(3):
        assert life.take(LetGo(actor)) == []
    assert [c for c in life.news() if isinstance(c, TellDied)] == [
        TellDied(driver, actor, Cause.SIGNALED, 9, place_is_free=True)
    ]


def test_who_was_killed_is_waited_for_but_not_told() -> None:
    life = Lifecycle({"CPU": 4.0}, 200)
    driver = new_process(life, "driver")
    actor, other = new_process(life, "actor"), new_process(life, "actor")
    for number, proc in enumerate((actor, other)):
        life.handle(ActorWanted(driver, proc, ActorRequest(number, "A")))
    assert life.handle(ActorKilled(1, no_restart=True)) == [Kill(other)]
    commands = life.handle(Died(actor, Cause.SIGNALED, 9))
    assert commands == [TellDied(driver, actor, Cause.SIGNALED, 9)]
    # It may still read what the dead one had sent: the place is not free.
    assert life.handle(Confirmed(driver, actor, False, False)) == []
    commands = life.handle(Died(other, Cause.KILLED, 0))
    assert TellForget(driver, actor, 0) in commands


def test_a_worker_that_is_worn_out_gets_no_other_task(life: Lifecycle) -> None:
    owner = new_worker(life)
    fork = lease(life, owner, 1, {"robot": 2.0})
    life.handle(LeaseWanted(owner, 2, {"robot": 2.0}))
    commands = life.handle(LeaseDone(fork.proc, is_worn_out=True))
    assert Retire(fork.proc) in commands
    assert not [c for c in commands if isinstance(c, GrantLease)]
    assert [c for c in commands if isinstance(c, Fork)]


def test_what_waits_is_found_with_its_place_in_line(life: Lifecycle) -> None:
    owner = new_worker(life)
    lease(life, owner, 1, {"robot": 2.0})
    for task in (2, 3):
        life.handle(LeaseWanted(owner, task, {"robot": float(task - 1)}))
    actor = new_process(life, "actor")
    request = ActorRequest(9, "A", resources={"robot": 1.0})
    life.handle(ActorWanted(owner, actor, request))
    life.handle(LeaseDropped(owner, 2))
    assert life.find_waiting(task=1) is None
    assert [r.task for r in life.waiting()] == [3, 0]
    task, of_actor = life.waiting()
    assert life.find_waiting(task=3) == (task, 0)
    assert life.find_waiting(actor=actor.index) == (of_actor, 1)
