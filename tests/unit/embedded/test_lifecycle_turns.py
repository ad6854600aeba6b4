"""Whose turn it is in a session that is always busy: all are served in the end."""

from __future__ import annotations

from collections import deque

import pytest

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from skate.engine.embedded.actors import ActorRequest
from skate.engine.embedded.events import (
    ActorWanted,
    Blocked,
    Command,
    CpuFree,
    CpusTaken,
    Fork,
    Forked,
    GiveCpus,
    GrantLease,
    HoldOver,
    LeaseDone,
    LeaseDropped,
    LeaseWanted,
    ServePool,
    TakeCpus,
    TimeHold,
    Unblocked,
    WantCpus,
)
from skate.engine.embedded.lifecycle import Lifecycle
from skate.engine.embedded.processes import Proc
from skate.engine.embedded.turns import Turns


class Session:
    """Leases that run, and the pool's tokens; what is told is carried out at once."""

    def __init__(self, cpus: float, places: int = 256, **others: float) -> None:
        self.pool_waits = False
        self.life = Lifecycle(
            {"CPU": cpus, **others}, places, pool_waits=lambda: self.pool_waits
        )
        self.turns = Turns(self.life, self.carry_out)
        self.driver = self.new("driver")
        self.free_tokens = int(cpus)
        self.cpus_wanted = 0
        self.pool_tokens = 0
        self.hold: TimeHold | None = None
        self.tasks = 0
        self.needs: dict[int, float] = {}
        self.running: dict[int, Proc] = {}  # in the order of their grants
        self.waiting: set[int] = set()  # leases that are blocked
        self.granted: list[int] = []

    def new(self, kind: str) -> Proc:
        proc = self.life.allocate(kind)  # type: ignore[arg-type]
        assert proc is not None
        return proc

    def carry_out(self, command: Command) -> None:
        match command:
            case TakeCpus(wanted):
                taken = min(wanted, self.free_tokens)
                self.free_tokens -= taken
                self.turns.tell(CpusTaken(taken))
            case GiveCpus(count):
                self.free_tokens += count
            case WantCpus(count):
                self.cpus_wanted = count
                if count and self.free_tokens:
                    self.turns.tell(CpuFree())
            case ServePool():
                self.pool_tokens += 1
            case TimeHold():
                self.hold = command
            case Fork(proc):
                self.turns.tell(Forked(proc))
            case GrantLease(_, task, worker):
                self.running[task] = worker
                self.granted.append(task)
                self.check_cpus()

    def check_cpus(self) -> None:
        used = sum(self.needs[t] for t in self.running if t not in self.waiting)
        assert used <= self.life._tokens

    def ask(self, owner: Proc, cpus: float = 1.0, **others: float) -> int:
        self.tasks += 1
        self.needs[self.tasks] = cpus
        self.turns.tell(LeaseWanted(owner, self.tasks, {"CPU": cpus, **others}))
        return self.tasks

    def cancel(self, owner: Proc, task: int) -> None:
        self.turns.tell(LeaseDropped(owner, task))

    def end(self, task: int) -> None:
        self.turns.tell(LeaseDone(self.running.pop(task)))

    def end_oldest(self) -> None:
        self.end(next(iter(self.running)))

    def block(self, task: int) -> None:
        self.waiting.add(task)
        self.turns.tell(Blocked(self.running[task]))

    def go_on(self, task: int) -> None:
        self.waiting.discard(task)
        self.turns.tell(Unblocked(self.running[task]))

    def put_back(self) -> None:
        """A worker of the pool ends its task."""
        self.pool_tokens -= 1
        self.free_tokens += 1
        if self.cpus_wanted:
            self.turns.tell(CpuFree())

    def end_hold(self) -> None:
        assert self.hold is not None
        self.turns.tell(HoldOver(self.hold.number))


def test_what_went_on_after_a_wait_has_its_cpus_before_others() -> None:
    session = Session(2)
    first = session.ask(session.driver)
    session.block(first)
    assert session.free_tokens == 2
    session.free_tokens -= 2
    session.pool_tokens += 2
    session.go_on(first)
    assert session.cpus_wanted == 1
    second = session.ask(session.driver)
    session.put_back()
    assert session.life._tokens == 1
    assert second not in session.running
    session.put_back()
    assert second in session.running


def test_a_request_for_two_cpus_is_served_beside_a_stream_of_small_ones() -> None:
    session = Session(2)
    for _ in range(6):
        session.ask(session.driver)
    wide = session.ask(session.driver, 2.0)
    for _ in range(40):
        if wide in session.running:
            break
        session.end_oldest()
        session.ask(session.driver)
    assert wide in session.running


def test_small_requests_have_their_turn_if_one_for_many_cpus_cannot_be_served() -> None:
    session = Session(3)
    session.ask(session.driver)  # never ends
    wide = session.ask(session.driver, 3.0)
    seconds = 0.0
    for _ in range(60):
        task = session.ask(session.driver)
        if task not in session.running:
            hold = session.hold
            assert hold is not None
            assert not hold.cpus
            assert hold.seconds > seconds
            seconds = hold.seconds
            session.end_hold()
        assert task in session.running
        session.end(task)
        if session.life._held.is_pools_turn():
            session.end_hold()
    assert wide not in session.running
    assert seconds > 2


def test_cpus_that_an_actor_has_are_not_waited_for() -> None:
    session = Session(3)
    session.turns.tell(
        ActorWanted(
            session.driver,
            session.new("actor"),
            ActorRequest(1, "A", name=("", ""), resources={"CPU": 1.0}),
        )
    )
    session.ask(session.driver, 3.0)
    for _ in range(60):
        task = session.ask(session.driver)
        assert task in session.running
        session.end(task)


def test_leases_that_wait_for_children_are_ended_before_others_begin() -> None:
    session = Session(2)
    parents = {session.ask(session.driver) for _ in range(100)}
    parent_of: dict[int, int] = {}
    most = 0
    while session.running:
        most = max(most, len(session.running))
        task = next(t for t in session.running if t not in session.waiting)
        if task in parents:
            parents.discard(task)
            parent_of[session.ask(session.running[task])] = task
            session.block(task)
            continue
        session.end(task)
        parent = parent_of.pop(task, None)
        if parent is not None:
            session.go_on(parent)
    assert not parents
    assert not session.life.waiting()
    assert most <= 10


def test_a_tree_of_leases_needs_few_workers() -> None:
    session = Session(2)
    depth = {session.ask(session.driver): 9}
    children: dict[int, set[int]] = {}
    parent_of: dict[int, int] = {}
    most = 0
    while session.running:
        most = max(most, len(session.running))
        task = next(t for t in session.running if t not in session.waiting)
        if depth[task] and task not in children:
            mine = {session.ask(session.running[task]) for _ in range(2)}
            depth.update(dict.fromkeys(mine, depth[task] - 1))
            parent_of.update(dict.fromkeys(mine, task))
            children[task] = mine
            session.block(task)
            continue
        session.end(task)
        parent = parent_of.get(task)
        if parent is not None:
            children[parent].discard(task)
            if not children[parent]:
                session.go_on(parent)
    assert len(session.granted) == 2**10 - 1
    assert most <= 2 * 9 + 10


def test_the_driver_is_served_beside_an_actor_that_asks_all_the_time() -> None:
    session = Session(2)
    actor = session.new("actor")
    session.turns.tell(ActorWanted(session.driver, actor, ActorRequest(1, "A")))
    flight = deque(session.ask(actor) for _ in range(5))
    for _ in range(3):
        mine = session.ask(session.driver)
        for _ in range(20):
            session.end(flight.popleft())
            flight.append(session.ask(actor))
            if mine in session.running:
                break
        session.end(mine)


def test_requests_of_one_owner_are_first_come_first_served() -> None:
    session = Session(1)
    worker = session.new("pool")
    other = session.new("pool")
    running = session.ask(session.driver)
    first = [session.ask(worker) for _ in range(3)]
    later = [session.ask(other) for _ in range(3)]
    session.end(running)
    while session.running:
        session.end_oldest()
    assert session.granted == [running, *later, *first]


def test_the_pool_has_every_second_cpu_that_leases_put_back() -> None:
    session = Session(2)
    for _ in range(6):
        session.ask(session.driver)
    session.end_oldest()
    served = session.pool_tokens
    assert not served  # it has no work
    session.pool_waits = True
    begun = len(session.granted)
    for n in range(1, 20):
        session.end_oldest()
        session.ask(session.driver)
        assert session.pool_tokens == 1
        assert len(session.granted) == begun + n - 1
        session.put_back()
        assert len(session.granted) == begun + n


@pytest.mark.parametrize("places", [512, 64])
def test_turns_are_rarer_if_many_wait_and_none_begins_if_a_sixteenth_of_places_do(
    places: int,
) -> None:
    session = Session(2, places)
    blocked = 0
    gaps = []
    for _ in range(4):
        for _ in range(4):
            task = session.ask(session.driver)
            session.block(task)
            blocked += 1
        old = session.ask(session.new("pool"))
        session.end(old)
        nested = session.new("pool")
        flight = deque(session.ask(nested) for _ in range(4))
        mine = session.ask(session.driver)
        ended = 0
        while mine not in session.running and ended < 2000:
            session.end(flight.popleft())
            flight.append(session.ask(nested))
            ended += 1
        gaps.append(ended)
        if mine not in session.running:
            break
        session.end(mine)
        for task in flight:
            if task in session.running:
                session.end(task)
    assert gaps == sorted(gaps)
    assert gaps[-1] > 100
    if places == 64:
        assert blocked == 4
        assert gaps[-1] == 2000
    else:
        assert gaps[-1] < 2000


@pytest.mark.parametrize("cpus", [0.0, 1.0])
def test_a_resource_that_a_task_asks_for_without_end_is_had_by_others_too(
    cpus: float,
) -> None:
    session = Session(4, x=1)
    asker = session.running[session.ask(session.driver)]
    flight = deque([session.ask(asker, cpus, x=1.0)])
    mine = session.ask(session.driver, cpus, x=1.0)
    for _ in range(40):
        flight.append(session.ask(asker, cpus, x=1.0))
        session.end(flight.popleft())
        if mine in session.running:
            break
    assert mine in session.running


def test_requests_are_looked_at_when_the_one_whose_turn_it_is_has_been_cancelled() -> (
    None
):
    session = Session(2, x=9, y=9)
    first = session.ask(session.driver)
    asker = session.running[first]
    session.pool_tokens += session.free_tokens
    session.free_tokens = 0
    cancelled = session.ask(session.driver, x=1.0)
    waiting = session.ask(session.driver, y=1.0)
    flight = deque([session.ask(asker)])
    session.block(first)
    for _ in range(50):
        flight.append(session.ask(asker))
        session.end(flight.popleft())
        if session.life._precedence._turn is not None:
            break
    session.pool_waits = True
    session.end(flight.popleft())  # the pool has its CPU now
    session.pool_waits = False
    for task in list(session.running):
        session.end(task)
    session.cancel(session.driver, cancelled)
    while session.pool_tokens:
        session.put_back()
    assert waiting in session.running


def test_all_begin_that_waited_for_what_one_puts_back_if_cpus_are_free() -> None:
    session = Session(16, x=8)
    wide = session.ask(session.driver, x=8.0)
    narrow = {session.ask(session.driver, x=1.0) for _ in range(8)}
    session.end(wide)
    assert session.running.keys() == narrow
    assert not session.cpus_wanted


def test_a_request_that_is_made_again_and_again_leaves_the_pool_its_turns() -> None:
    session = Session(2)
    session.free_tokens -= 1
    session.pool_tokens += 1  # of an endless task
    task = session.ask(session.driver, 2.0)
    for _ in range(3):
        assert session.cpus_wanted
        session.end_hold()
        for _ in range(5):
            assert session.free_tokens == 1
            assert not session.cpus_wanted
            session.cancel(session.driver, task)
            task = session.ask(session.driver, 2.0)
        session.end_hold()
    assert session.cpus_wanted


def test_what_the_deepest_task_of_a_tree_asks_for_is_served_first() -> None:
    session = Session(3)
    outer, other = session.ask(session.driver), session.ask(session.driver)
    inner = session.ask(session.running[outer])
    of_inner = [session.ask(session.running[inner]) for _ in range(2)]
    of_other = [session.ask(session.running[other]) for _ in range(2)]
    session.block(other)
    assert session.granted[-1] == of_inner[0]
    session.block(outer)
    assert session.granted[-1] == of_inner[1]
    session.block(inner)
    assert session.granted[-1] == of_other[0]


def test_the_driver_is_served_beside_an_actor_that_takes_all_places() -> None:
    session = Session(16, 12)
    actor = session.new("actor")
    session.turns.tell(ActorWanted(session.driver, actor, ActorRequest(1, "A")))
    session.turns.tell(Blocked(actor))
    for _ in range(20):
        session.ask(actor, 0.25)
    mine = session.ask(session.driver, 0.25)
    for _ in range(40):
        session.ask(actor, 0.25)
        session.end_oldest()
        if mine in session.running:
            break
    assert mine in session.running
