"""Actors whose processes are killed under load, at moments nobody chose."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import alive
from workload import Log, Relay

import skate
from skate import _runtime
from skate.exceptions import ActorDiedError, ActorUnavailableError
from skate.util import list_named_actors

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")


@pytest.fixture
def session() -> Iterator[None]:
    with skate.init("embedded", num_cpus=2):
        yield


def pid_of(actor: skate.ActorHandle[Any]) -> int:
    for info in _runtime.current().list_actors():
        if info.actor_id == actor._skate_actor._id:
            return info.pid
    return 0


def wait_until(condition: Callable[[], bool], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


class Killer(threading.Thread):
    """SIGKILLs the process of an actor again and again, wherever it lives now."""

    def __init__(self, actors: list[skate.ActorHandle[Any]], seed: int) -> None:
        super().__init__()
        self.kills = 0
        self._actors = actors
        self._random = random.Random(seed)
        self._stop_it = threading.Event()

    def run(self) -> None:
        while not self._stop_it.wait(self._random.uniform(0.0, 0.2)):
            pid = pid_of(self._random.choice(self._actors))
            with contextlib.suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, signal.SIGKILL)
                    self.kills += 1

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop_it.set()
        self.join()


def in_order(answers: list[tuple[str, int, int]]) -> bool:
    """What an incarnation had seen of the caller before each call only grows."""
    last: dict[str, int] = {}
    for incarnation, _, before in answers:
        if before < last.get(incarnation, -1):
            return False
        last[incarnation] = before
    return True


@pytest.mark.parametrize("seed", range(3))
def test_retried_calls_of_many_callers_all_answer_in_order(
    session: None, seed: int
) -> None:
    log = Log.options(max_restarts=-1, max_task_retries=-1).remote()
    relays = [Relay.remote(log) for _ in range(2)]
    skate.get([relay.ready.remote() for relay in relays])
    made = 0
    with Killer([log], seed) as killer:
        end = time.monotonic() + 4
        while time.monotonic() < end or killer.kills < 10:
            numbers = range(made, made + 50)
            made += 50
            refs = [log.note.remote("driver", i) for i in numbers]
            through = [relay.note_all.remote(made, 50) for relay in relays]
            answers = skate.get(refs, timeout=60)
            assert [i for _, i, _ in answers] == list(numbers)
            assert in_order(answers)
            for others in skate.get(through, timeout=60):
                assert [i for _, i, _ in others] == list(range(made, made + 50))
                assert in_order(others)
    assert killer.kills >= 10


@pytest.mark.parametrize("seed", range(2))
def test_calls_without_retries_answer_or_say_that_they_were_interrupted(
    session: None, seed: int
) -> None:
    log = Log.options(max_restarts=-1).remote()
    answered = interrupted = made = 0
    with Killer([log], seed) as killer:
        end = time.monotonic() + 3
        while (
            time.monotonic() < end
            or killer.kills < 10
            or not (answered and interrupted)
        ):
            refs = [log.note.remote("driver", made + i) for i in range(50)]
            for i, ref in enumerate(refs):
                try:
                    assert skate.get(ref, timeout=60)[1] == made + i
                    answered += 1
                except ActorUnavailableError:
                    interrupted += 1
            made += 50


def test_an_actor_killed_while_it_starts_again_starts_once_more(
    session: None, tmp_path: Path
) -> None:
    @skate.remote(max_restarts=-1, max_task_retries=-1)
    class Slow:
        def __init__(self, folder: str) -> None:
            number = len(os.listdir(folder))
            Path(folder, str(number)).write_text(str(os.getpid()))
            if number in (1, 2, 3):  # the first three restarts end here
                os.kill(os.getpid(), signal.SIGKILL)

        def pid(self) -> int:
            return os.getpid()

    actor = Slow.remote(str(tmp_path))
    first = skate.get(actor.pid.remote(), timeout=60)
    os.kill(first, signal.SIGKILL)
    assert skate.get(actor.pid.remote(), timeout=60) != first
    assert len(os.listdir(tmp_path)) == 5


def test_a_kill_for_good_in_the_middle_of_restarts_is_final(session: None) -> None:
    for _ in range(5):
        log = Log.options(max_restarts=-1, max_task_retries=-1).remote()
        skate.get(log.note.remote("driver", 0), timeout=60)
        os.kill(pid_of(log), signal.SIGKILL)
        skate.kill(log)
        with pytest.raises(ActorDiedError):
            skate.get(log.note.remote("driver", 1), timeout=60)


def test_an_actor_restarts_with_large_arguments_and_leaks_nothing(
    session: None,
) -> None:
    big = bytes(1_000_000)
    log = Log.options(max_restarts=-1, max_task_retries=-1).remote(big)
    for i in range(5):
        assert skate.get(log.size.remote(), timeout=60) == len(big)
        os.kill(pid_of(log), signal.SIGKILL)
        assert skate.get(log.note.remote("driver", i), timeout=60)[1] == i
    del log
    wait_until(lambda: _runtime.statistics()["objects"] == 0)
    wait_until(lambda: _runtime.statistics()["store_bytes"] < 100_000)


def test_a_killed_creator_takes_its_actors_along(session: None) -> None:
    relay = Relay.remote(None)
    child = skate.get(relay.make.remote(), timeout=60)
    assert skate.get(child.note.remote("driver", 1), timeout=60)[1] == 1
    os.kill(pid_of(relay), signal.SIGKILL)
    wait_until(lambda: pid_of(child) == 0)
    with pytest.raises(ActorDiedError, match="had created it"):
        skate.get(child.note.remote("driver", 2), timeout=60)


def test_exit_handlers_of_an_actor_run_when_it_ends(
    session: None, tmp_path: Path
) -> None:
    @skate.remote
    class Tidy:
        def __init__(self, path: str) -> None:
            import atexit

            atexit.register(lambda: Path(path).write_text("tidied"))

        def call(self) -> None: ...

    for name in ("out_of_scope", "terminate"):
        path = tmp_path / name
        actor = Tidy.remote(str(path))
        skate.get(actor.call.remote(), timeout=60)
        if name == "terminate":
            actor.__ray_terminate__.remote()
        del actor
        wait_until(path.exists)


def test_an_actor_whose_object_raises_at_its_end_has_ended(
    session: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    @skate.remote
    class Raises:
        def __init__(self) -> None:
            self.me = self  # only the collector finds it

        def pid(self) -> int:
            return os.getpid()

        def __del__(self) -> None:
            raise SystemExit("not today")

    actor = Raises.remote()
    pid = skate.get(actor.pid.remote(), timeout=60)
    del actor
    wait_until(lambda: not alive(pid))
    skate.shutdown()
    assert "not today" in capfd.readouterr().err


def test_a_detached_actor_survives_the_death_of_the_worker_that_made_it(
    session: None,
) -> None:
    @skate.remote(max_retries=0)
    def make(payload: bytes) -> int:
        Log.options(
            name="kept", lifetime="detached", max_restarts=-1, max_task_retries=-1
        ).remote(payload)
        return os.getpid()

    maker = skate.get(make.remote(bytes(1000)), timeout=60)
    os.kill(maker, signal.SIGKILL)
    log = skate.get_actor("kept")
    for i in range(3):
        assert skate.get(log.size.remote(), timeout=60) == 1000
        os.kill(pid_of(log), signal.SIGKILL)
        assert skate.get(log.note.remote("driver", i), timeout=60)[1] == i
    skate.kill(log)
    with pytest.raises(ActorDiedError):
        skate.get(log.size.remote(), timeout=60)


@skate.remote
class Idle:
    pass


class InterruptedHere(BaseException):
    pass


def living_actors() -> int:
    actors = _runtime.current().list_actors()
    return sum(info.state != "DEAD" for info in actors)


# An interrupt within a weak reference's callback is lost, in Python itself: cloudpickle
# keeps classes in a WeakValueDictionary. The actor is made then, as if there was none.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function WeakValueDictionary"
    ":pytest.PytestUnraisableExceptionWarning"
)
def test_an_interrupt_leaves_no_actor_that_nobody_can_call(session: None) -> None:
    Idle.remote()  # imports what it takes
    made: list[Any] = []
    moments = random.Random(1)
    interrupts = 0

    def interrupt(*_: Any) -> None:
        nonlocal interrupts
        interrupts += 1
        raise InterruptedHere

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(300):
            with contextlib.suppress(InterruptedHere):
                signal.setitimer(signal.ITIMER_REAL, moments.uniform(10e-6, 500e-6))
                made.append(Idle.remote())
                while interrupts == i:
                    time.sleep(1e-4)
            made.clear()  # an interrupt of this would be lost, as in any destructor
            wait_until(lambda: living_actors() <= 4)
    finally:
        signal.signal(signal.SIGALRM, before)
    wait_until(lambda: living_actors() == 0)


@skate.remote(max_restarts=-1)
class EndsAtOnce:
    def __init__(self, log: str) -> None:
        with open(log, "a") as file:
            file.write("x")
        os._exit(3)


def test_an_actor_that_nobody_has_is_not_made_again_and_again(
    session: None, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    actor = EndsAtOnce.remote(str(log))
    wait_until(lambda: log.exists() and log.stat().st_size > 2)
    del actor
    wait_until(lambda: living_actors() == 0)
    starts = log.stat().st_size
    for _ in range(20):
        skate.get(Named.remote(0).same.remote())
    assert log.stat().st_size == starts


class OpensWhenPickled:
    """Says that it is being pickled, and goes on once it may."""

    def __init__(self) -> None:
        self.is_pickled, self.may_go_on = threading.Event(), threading.Event()

    def __reduce__(self) -> Any:
        self.is_pickled.set()
        self.may_go_on.wait(30)
        return int, ()


@skate.remote
class Named:
    def __init__(self, argument: Any) -> None:
        pass

    def same(self, value: Any = None) -> Any:
        return value


@skate.remote
def ask(actor: Any) -> Any:
    return skate.get(actor.same.remote("answer"))


def test_a_call_made_before_its_actors_constructor_waits_for_it(session: None) -> None:
    """By who got the handle by its name; and its argument needs the actor."""
    argument = OpensWhenPickled()
    made: list[Any] = []
    maker = threading.Thread(
        target=lambda: made.append(Named.options(name="named").remote(argument))
    )
    maker.start()
    assert argument.is_pickled.wait(30)
    wait_until(lambda: "named" in list_named_actors())
    actor = skate.get_actor("named")
    call = actor.same.remote(ask.remote(actor))
    argument.may_go_on.set()
    maker.join()
    assert skate.get(call, timeout=30) == "answer"
