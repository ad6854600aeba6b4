"""The handler of a signal raises in the middle of a call: nothing is lost or left."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from polling import wait_until
from processes import children
from striking import Strike, Struck, strikes

import skate
from skate.collective import GroupSpec
from skate.engine.embedded import wire
from skate.engine.protocol import ActorInfo, ActorState
from skate.util import (
    placement_group,
    placement_group_table,
    remove_placement_group,
)

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

TIMEOUT = 60


@pytest.fixture
def session() -> Iterator[None]:
    with skate.init("embedded", num_cpus=2):
        yield


@skate.remote
def same(x: int) -> int:
    return x


@skate.remote(num_returns="streaming")
def items(count: int) -> Iterator[int]:
    yield from range(count)


def read(
    strike: Strike, iterator: Iterator[skate.ObjectRef[int]]
) -> Iterator[skate.ObjectRef[int]]:
    """What it yields, however often it is interrupted."""
    while True:
        try:
            with strike:
                ref = next(iterator)
        except Struck:
            continue
        except StopIteration:
            return
        yield ref


def test_descriptors_that_have_come_are_closed() -> None:
    """All but those that the system call has just made, and nothing holds yet."""
    not_held_yet = ("recvmsg", "frombytes")
    before = os.listdir("/proc/self/fd")
    for strike in strikes(("wire.py",)):
        mine, theirs = wire.socket_pair()
        with mine, theirs:
            with open(os.devnull) as one, open(os.devnull) as other:
                wire.send(theirs, b"hello", [one.fileno(), other.fileno()])
            try:
                with strike:
                    _, received = wire.receive_first(mine)
            except Struck as error:
                received = []
                for frame in traceback.extract_tb(error.__traceback__):
                    if any(name in (frame.line or "") for name in not_held_yet):
                        before += [""] * 2
            for fd in received:
                os.close(fd)
        assert len(os.listdir("/proc/self/fd")) <= len(before), strike.where


def test_as_completed_yields_each_ref_once(session: None) -> None:
    for strike in strikes():
        refs = [same.remote(i) for i in range(5)]
        finished = skate.as_completed(refs, TIMEOUT)
        assert sorted(map(id, read(strike, finished))) == sorted(map(id, refs)), (
            strike.where
        )


def test_batches_of_as_completed_hold_each_ref_once(session: None) -> None:
    for strike in strikes():
        refs = [same.remote(i) for i in range(5)]
        finished = skate.as_completed(refs)
        found = []
        while len(finished):
            try:
                with strike:
                    batch = finished.next_batch(TIMEOUT)
            except Struck:
                continue
            assert batch, strike.where
            found += batch
        assert sorted(map(id, found)) == sorted(map(id, refs)), strike.where


def test_a_ref_whose_add_was_interrupted_can_be_added_again(session: None) -> None:
    for strike in strikes():
        finished = skate.as_completed([same.remote(1)])
        first = next(finished)
        second = same.remote(2)
        skate.wait([second])
        try:
            with strike:
                finished.add(second)
        except Struck:
            finished.add(second)
        assert [id(ref) for ref in finished] == [id(second)], strike.where
        assert skate.get(first) == 1


def test_a_stream_gives_each_item_once(session: None) -> None:
    for strike in strikes():
        stream = items.remote(3)
        values = [skate.get(ref) for ref in read(strike, stream)]
        assert values == [0, 1, 2], strike.where


def test_a_stream_tells_of_an_item_whose_next_was_interrupted(session: None) -> None:
    for strike in strikes():
        stream = items.remote(1)
        try:
            with strike:
                next(stream)
        except Struck:
            ready, _ = skate.wait([stream], timeout=TIMEOUT)
            assert ready == [stream], strike.where
            assert not stream.is_finished(), strike.where
            assert stream.next_ready(), strike.where
            assert next(skate.as_completed([stream], TIMEOUT)) is stream
            assert skate.get(next(stream)) == 0, strike.where
        assert next(stream, None) is None, strike.where


def live_placement_groups() -> list[str]:
    table = placement_group_table()
    return [group for group, row in table.items() if row["state"] != "REMOVED"]


def test_no_placement_group_is_left_without_a_handle(session: None) -> None:
    for strike in strikes():
        try:
            with strike:
                group = placement_group([{"CPU": 1}])
        except Struck:
            pass
        else:
            remove_placement_group(group)
        assert live_placement_groups() == [], strike.where


def test_a_placement_group_is_given_up_while_the_supervisor_is_stopped(
    session: None,
) -> None:
    def strike(*_: object) -> None:
        raise Struck

    (supervisor,) = children(os.getpid())
    os.kill(supervisor, signal.SIGSTOP)
    before = signal.signal(signal.SIGALRM, strike)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Struck):
            placement_group([{"CPU": 2}])
    finally:
        signal.signal(signal.SIGALRM, before)
        os.kill(supervisor, signal.SIGCONT)
    assert live_placement_groups() == []
    assert wait_until(lambda: skate.available_resources()["CPU"] == 2)


def test_no_placement_group_is_left_by_a_warning_that_is_an_error(
    session: None,
) -> None:
    with pytest.raises(RuntimeWarning, match="will never be ready"):
        placement_group([{"CPU": 1000}])
    assert live_placement_groups() == []


def open_files(name: str) -> list[str]:
    folder = Path("/proc/self/fd")
    found = []
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # that of the folder itself
            found += [str(file)] if name in os.readlink(file) else []
    return found


def test_no_memory_of_a_group_stays_open(session: None) -> None:
    for number, strike in enumerate(strikes()):
        try:
            with strike:
                group = GroupSpec(f"group {number}", 1).join(0, TIMEOUT)
        except Struck:
            pass
        else:
            group.close()
        assert open_files("skate-group") == [], strike.where
        # The rank is free for another.
        GroupSpec(f"group {number}", 1).join(0, TIMEOUT).close()


@skate.remote(num_cpus=0)
class Named:
    pass


def live_actors() -> list[ActorInfo]:
    engine = skate._runtime.current()
    return [a for a in engine.list_actors() if a.state is not ActorState.DEAD]


def test_no_detached_actor_is_left_without_a_handle(session: None) -> None:
    creation = ("_actor.py", "embedded/engine.py")
    for strike in strikes(creation):
        try:
            with strike:
                actor = Named.options(name="one", lifetime="detached").remote()
        except Struck:
            pass
        else:
            skate.kill(actor)
        assert wait_until(lambda: not live_actors()), strike.where


def test_no_code_is_left_in_the_store(session: None) -> None:
    engine = skate._runtime.current()
    before = engine.statistics()["objects"]

    def is_clean() -> bool:
        if engine.statistics()["objects"] > before:
            gc.collect()  # of the traceback, which holds the frames
        return engine.statistics()["objects"] <= before

    for strike in strikes(("embedded/engine.py",)):
        function = skate.remote(lambda: None)
        try:
            with strike:
                ref = function.remote()
        except Struck:
            pass
        else:
            skate.get(ref)
            del ref
        del function
        assert wait_until(is_clean), strike.where


@skate.remote(num_cpus=0)
class Gate:
    def wait(self, path: Path) -> None:
        while not path.exists():
            threading.Event().wait(0.002)


@skate.remote
def get_inner(refs: list[skate.ObjectRef[None]], started: Path) -> None:
    started.touch()
    skate.get(refs[0])


@skate.remote
def wait_outside(started: Path, gate: Path) -> int:
    started.touch()
    while not gate.exists():
        threading.Event().wait(0.002)
    return os.getpid()


def test_a_worker_whose_get_was_cancelled_is_not_said_to_wait(tmp_path: Path) -> None:
    gate, first, second = tmp_path / "gate", tmp_path / "first", tmp_path / "second"
    with skate.init("embedded", num_cpus=1):
        actor = Gate.remote()
        blocked = actor.wait.remote(gate)
        waits = get_inner.remote([blocked], first)
        assert wait_until(lambda: "blocked in get" in skate.why(waits))
        skate.cancel(waits)
        with pytest.raises(skate.exceptions.TaskCancelledError):
            skate.get(waits)
        computes = wait_outside.remote(second, gate)
        assert wait_until(second.exists)
        assert "blocked in" not in skate.why(computes)
        gate.touch()
        skate.get([computes, blocked])
