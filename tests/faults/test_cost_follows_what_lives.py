"""Cost and memory follow what lives now, not what there ever was, nor its square.

Costs are compared with each other, on one machine and within one session: CPU time of a
process per unit of work, and bytes. Nothing is compared with a clock.
"""

from __future__ import annotations

import gc
import os
import random
import textwrap
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from polling import wait_until
from processes import children
from programs import run

import skate
from skate.actor import exit_actor
from skate.collective import GroupSpec
from skate.exceptions import ActorDiedError, TaskCancelledError
from skate.util import placement_group, remove_placement_group, state

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

MIB = 1 << 20
FACTOR = 3.0  # how much more one of many may cost than one of few


@pytest.fixture
def session() -> Iterator[None]:
    with skate.init("embedded", num_cpus=2, resources={"gate": 1}):
        yield


def supervisor() -> int:
    (pid,) = children(os.getpid())
    return pid


def cpu_ns(pid: int) -> int:
    """What all threads of a process have computed so far."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        total += int((thread / "schedstat").read_text().split()[0])
    return total


def cost(pid: int, work: Callable[[], object]) -> int:
    before = cpu_ns(pid)
    work()
    return cpu_ns(pid) - before


def stored_bytes(pid: int) -> int:
    """Memory of the kernel's that a process holds by descriptors, used or not."""
    seen: dict[int, int] = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(link).startswith("/memfd:"):
                status = os.stat(link)
                seen[status.st_ino] = status.st_blocks * 512
        except FileNotFoundError:
            continue
    return sum(seen.values())


@skate.remote
def answer(x: Any = None) -> Any:
    return x


@skate.remote
def work_a_little() -> None:
    time.sleep(0.002)


@skate.remote
def doze() -> None:
    time.sleep(600.0)


@skate.remote(num_cpus=0)
class Peer:
    def get(self, x: Any = None) -> Any:
        return x

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def use_up(self, seconds: float) -> int:
        """Run tasks one after the other; how many."""
        end = time.monotonic() + seconds
        n = 0
        while time.monotonic() < end:
            skate.get(work_a_little.remote())
            n += 1
        return n

    def join(self, name: str, rank: int) -> bool:
        self.group = GroupSpec(name, 2).join(rank, 60)
        self.x = self.group.empty(4 * MIB, np.float32)
        self.x[...] = 1
        self.group.allreduce(self.x, "sum", timeout=60)
        return True


# The arena ----------------------------------------------------------------------------


@pytest.fixture
def small_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A store of 256 MiB that does not spill."""
    monkeypatch.setenv("SKATE_SPILL_DIR", "")
    with skate.init("embedded", num_cpus=2, object_store_memory=256 * MIB):
        yield 256 * MIB


SIZES = [5_000, 20_000, 60_000, 300_000, 500_000, 900_000, 2 * MIB, 9 * MIB, 40 * MIB]


def test_free_memory_serves_values_of_any_size(small_store: int) -> None:
    """Each phase fills most of the store with one size, after others did so."""
    rng = random.Random(0)
    for size in [*SIZES, *reversed(SIZES), *rng.sample(SIZES, len(SIZES))]:
        held = [
            skate.put(np.zeros(size, np.uint8))
            for _ in range(int(0.8 * small_store / (size * 1.26 + 4096)))
        ]
        assert skate.get(held[-1]).nbytes == size
        del held


def test_what_is_free_between_what_lives_can_be_used(small_store: int) -> None:
    """With half of the store in use, in pieces, there is room for other sizes."""
    rng = random.Random(1)
    held: list[Any] = []
    used = 0
    for _ in range(3000):
        size = rng.choice(SIZES[:7])
        while used + size > 0.55 * small_store:
            ref, freed = held.pop(rng.randrange(len(held)))
            del ref
            used -= freed
        held.append((skate.put(np.full(size, size % 251, np.uint8)), size))
        used += size
    for ref, size in held:
        assert (skate.get(ref) == size % 251).all()
    for size in (300_000, 1_000_000, 5_000_000):
        assert skate.get(skate.put(np.zeros(size, np.uint8))).nbytes == size


def test_memory_that_nobody_uses_goes_back(small_store: int) -> None:
    for size in SIZES * 2:
        held = [
            skate.put(np.ones(size, np.uint8))
            for _ in range(int(0.5 * small_store / (size * 1.26 + 4096)))
        ]
        del held
        # The limit holds for what the machine has given, too.
        assert wait_until(lambda: stored_bytes(supervisor()) <= 1.25 * small_store, 20)


# Service ------------------------------------------------------------------------------


def test_who_polls_is_served_like_who_blocks() -> None:
    with skate.init("embedded", num_cpus=1):
        rivals = [Peer.remote() for _ in range(4)]
        skate.get([rival.get.remote() for rival in rivals])
        skate.get(work_a_little.remote())
        busy = [rival.use_up.remote(4.0) for rival in rivals]
        done = 0
        while not skate.wait(busy, num_returns=1, timeout=0)[0]:
            mine = work_a_little.remote()
            while not skate.wait([mine], timeout=0)[0]:
                pass
            done += 1
        theirs = skate.get(busy)
        assert done > sum(theirs) / len(theirs) / 10, (done, theirs)


# Leases -------------------------------------------------------------------------------


def many_leases(n: int, **options: Any) -> None:
    refs = [answer.options(**options).remote(i) for i in range(n)]
    assert skate.get(refs) == list(range(n))


LEASES: dict[str, dict[str, Any]] = {
    "a share of a CPU": {"num_cpus": 0.5},
    "a resource": {"num_cpus": 0, "resources": {"gate": 0.5}},
}


@pytest.mark.parametrize("options", LEASES.values(), ids=LEASES)
def test_a_lease_costs_the_same_among_many(
    session: None, options: dict[str, Any]
) -> None:
    few, many = 250, 2000
    many_leases(few, **options)
    one_of_few = cost(supervisor(), lambda: many_leases(few, **options)) / few
    one_of_many = cost(supervisor(), lambda: many_leases(many, **options)) / many
    assert one_of_many < FACTOR * one_of_few


def test_a_lease_of_a_placement_group_costs_the_same_among_many(session: None) -> None:
    from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([{"CPU": 1}])
    assert group.wait(30)
    where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    few, many = 250, 2000
    many_leases(few, scheduling_strategy=where)
    one_of_few = cost(supervisor(), lambda: many_leases(few, scheduling_strategy=where))
    one_of_many = cost(
        supervisor(), lambda: many_leases(many, scheduling_strategy=where)
    )
    assert one_of_many / many < FACTOR * one_of_few / few
    remove_placement_group(group)


def test_a_placement_group_costs_the_same_after_many(session: None) -> None:
    def some(n: int) -> None:
        for _ in range(n):
            remove_placement_group(placement_group([{"CPU": 0.1}]))

    some(100)
    early = cost(supervisor(), lambda: some(200))
    some(1500)
    assert cost(supervisor(), lambda: some(200)) < FACTOR * early


def test_a_call_costs_the_same_beside_many_that_lack_arguments(session: None) -> None:
    gate = Peer.remote()
    actor = Peer.options(allow_out_of_order_execution=True).remote()
    lacked = gate.sleep.remote(600.0)

    def call(n: int) -> None:
        for _ in range(n):
            skate.get(actor.get.remote())

    call(100)
    waiting = [actor.get.remote(lacked) for _ in range(100)]
    beside_few = cost(os.getpid(), lambda: call(500))
    waiting += [actor.get.remote(lacked) for _ in range(20_000)]
    assert cost(os.getpid(), lambda: call(500)) < FACTOR * beside_few
    for ref in waiting:
        skate.cancel(ref)


@pytest.mark.parametrize("line", ["of an actor", "for the pool"])
def test_a_row_of_a_list_costs_the_same_among_many(session: None, line: str) -> None:
    gate, actor = Peer.remote(), Peer.remote()
    ahead = [actor.get.remote(gate.sleep.remote(600.0)), *(doze.remote() for _ in "12")]
    waits: list[Any] = []

    def add_and_list(n: int) -> float:
        call = actor.get if line == "of an actor" else answer
        waits.extend(call.remote() for _ in range(n))
        rows: list[Any] = []
        gc.collect()
        spent = cost(os.getpid(), lambda: rows.extend(state.list_tasks(limit=10**6)))
        assert len(rows) > len(waits)
        return spent / len(waits)

    add_and_list(500)  # it imports something
    few = max(add_and_list(500) for _ in range(3))
    assert add_and_list(30_000) < FACTOR * few
    for ref in [*waits, *ahead]:
        skate.cancel(ref)


def test_a_cancel_costs_the_same_among_many(session: None) -> None:
    def cancel_all(n: int) -> int:
        gate = Peer.options(max_concurrency=1).remote()
        first = answer.remote(gate.use_up.remote(0.0))
        skate.get(first)
        refs = [answer.options(num_cpus=2).remote(i) for i in range(n)]
        spent = cost(os.getpid(), lambda: [skate.cancel(ref) for ref in refs])
        for ref in refs:
            try:
                skate.get(ref)
            except TaskCancelledError:
                pass
        return spent

    def cancel_queued(n: int) -> int:
        blockers = [nap.remote() for _ in range(2)]
        skate.wait(blockers, timeout=0.1)
        refs = [answer.remote(i) for i in range(n)]
        spent = cost(os.getpid(), lambda: [skate.cancel(ref) for ref in refs])
        skate.wait(refs, num_returns=n, timeout=60)
        skate.get(blockers)
        return spent

    for each in (cancel_all, cancel_queued):
        each(100)
        few, many = 2000, 20_000
        tick_ns = 10_000_000  # some kernels count in these
        spent = max(each(few), tick_ns)
        assert spent / few * FACTOR > each(many) / many, each.__name__


# Deaths -------------------------------------------------------------------------------


def lives_of_actors(n: int) -> None:
    for _ in range(n):
        actor = Peer.remote()
        skate.get(actor.get.remote())
        skate.kill(actor)
        with pytest.raises(ActorDiedError):
            skate.get(actor.get.remote(), timeout=60)


def objects_come_and_go(n: int) -> None:
    refs = [skate.put(None) for _ in range(n)]
    refs.clear()


def test_a_death_costs_the_same_after_a_million_objects(session: None) -> None:
    lives_of_actors(5)
    early = cost(os.getpid(), lambda: lives_of_actors(20))
    objects_come_and_go(1_000_000)
    gc.collect()
    assert cost(os.getpid(), lambda: lives_of_actors(20)) < FACTOR * early


# In a process of its own: the heap of this one has what earlier tests have left.
HEAP = """
    import ctypes, gc, sys, time
    import skate
    from skate.exceptions import ActorDiedError

    class MallInfo(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks",
            "uordblks", "fordblks", "keepcost")]

    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallInfo

    def heap():  # what the core has allocated and not freed
        gc.collect()
        found = mallinfo2()
        return found.uordblks + found.hblkhd

    def smallest(limit):  # what is left once what was freed late has gone, too
        end = time.monotonic() + 20
        while heap() > limit and time.monotonic() < end:
            time.sleep(0.01)
        return heap()

    @skate.remote(num_cpus=0)
    class Peer:
        def get(self):
            return None

    def lives(n):
        for _ in range(n):
            actor = Peer.remote()
            skate.get(actor.get.remote(), timeout=60)
            skate.kill(actor)
            try:
                skate.get(actor.get.remote(), timeout=60)
            except ActorDiedError:
                pass
"""


def test_a_table_shrinks_when_its_objects_go() -> None:
    run(
        HEAP
        + """
    with skate.init("embedded", num_cpus=1):
        refs = [skate.put(None) for _ in range(1000)]
        refs.clear()
        before = heap()
        refs = [skate.put(None) for _ in range(300_000)]
        most = heap() - before
        refs.clear()
        left = smallest(before + most / 4) - before
        assert left < most / 4, (most, left)
"""
    )


def test_an_actor_that_has_ended_leaves_nothing() -> None:
    run(
        HEAP
        + """
    with skate.init("embedded", num_cpus=1):
        lives(100)
        before = heap()
        lives(300)
        left = smallest(before + 300 * 500) - before
        assert left < 300 * 500, left
"""
    )


@skate.remote
class Leaving:
    def leave(self) -> None:
        exit_actor()


@pytest.mark.parametrize("how", ["by kill", "by itself"])
def test_few_handles_are_kept_of_detached_actors_that_have_died(
    session: None, how: str
) -> None:
    handles: list[weakref.ref[Any]] = []
    living = Leaving.options(lifetime="detached").remote()
    for _ in range(40):
        actor = Leaving.options(lifetime="detached").remote()
        handles.append(weakref.ref(actor._skate_actor))
        if how == "by kill":
            skate.kill(actor)
        else:
            with pytest.raises(ActorDiedError):
                skate.get(actor.leave.remote(), timeout=60)
        del actor
    gc.collect()
    assert sum(handle() is not None for handle in handles) <= 20
    kept = weakref.ref(living._skate_actor)
    del living
    gc.collect()
    assert kept() is not None


def test_the_memory_of_a_group_goes_with_its_ranks(session: None) -> None:
    def group(name: str) -> None:
        ranks = [Peer.remote() for _ in range(2)]
        assert all(skate.get([r.join.remote(name, i) for i, r in enumerate(ranks)]))
        for rank in ranks:
            skate.kill(rank)

    group("first")
    assert wait_until(lambda: stored_bytes(supervisor()) < 30 * MIB, 20)
    before = stored_bytes(supervisor())
    for _ in range(4):
        group("again")  # its name is free again, too
        assert wait_until(lambda: stored_bytes(supervisor()) < before + 10 * MIB, 20)


def test_actors_made_at_once_share_what_all_of_them_import() -> None:
    program = """
    import os, skate
    from pathlib import Path

    @skate.remote(num_cpus=0)
    class Actor:
        def pid(self):
            return os.getpid()

    with skate.init("embedded", num_cpus=2):
        actors = [Actor.remote() for _ in range(24)]  # before the first has imported it
        total = 0
        for pid in skate.get([actor.pid.remote() for actor in actors]):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(s.split()[1]) for s in lines if s.startswith("Private_"))
        print(total // len(actors))
    """
    assert int(run(textwrap.dedent(program), seconds=60)) < 4 * 1024  # kB


@skate.remote
def nap() -> None:
    time.sleep(0.002)


@pytest.mark.usefixtures("session")
def test_waiting_for_all_costs_a_look_at_each_not_at_each_wake() -> None:
    ready = [skate.put(i) for i in range(100_000)]
    few = 300

    def wait(refs: list[Any]) -> int:
        return cost(os.getpid(), lambda: skate.wait(refs, num_returns=len(refs)))

    def naps() -> list[Any]:
        return [nap.remote() for _ in range(few)]

    wait([*ready, *naps()])  # workers have begun
    apart = wait(ready) + wait(naps())
    assert wait([*ready, *naps()]) < FACTOR * apart
