"""Restarts, ends on purpose, names and detached actors, the list of actors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Counter, Signal, identity, wait_for
from polling import wait_until

import skate
from skate import _runtime
from skate.actor import exit_actor
from skate.engine.protocol import ActorInfo
from skate.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ResourceError,
    TaskCancelledError,
)

pytestmark = pytest.mark.usefixtures("engine")


def actors() -> list[ActorInfo]:
    return _runtime.current().list_actors()


def info_of(actor: skate.ActorHandle[Any]) -> ActorInfo:
    (found,) = [a for a in actors() if a.actor_id == actor._skate_actor._id]
    return found


def has_state(actor: skate.ActorHandle[Any], state: str) -> Callable[[], bool]:
    return lambda: info_of(actor).state == state


# Ends ------------------------------------------------------------------------------


@skate.remote(num_cpus=2)
class Noting:
    """Has all CPUs; tells a counter when it is made."""

    def __init__(self, counter: Any, _: Any = None) -> None:
        skate.get(counter.add.remote())

    def give(self, x: Any) -> Any:
        return x


def all_cpus_are_free() -> bool:
    return skate.get(identity.options(num_cpus=2).remote(True), timeout=60)


@pytest.mark.parametrize("lacks", ["an argument", "its CPUs"])
def test_an_actor_that_is_killed_before_it_starts_is_not_made(lacks: str) -> None:
    counter, signal = Counter.options(num_cpus=0).remote(), Signal.remote()
    holder, argument = None, None
    if lacks == "an argument":
        argument = wait_for.remote(signal)
    else:
        holder = Noting.remote(Counter.options(num_cpus=0).remote())
        skate.get(holder.give.remote(1))
    actor = Noting.remote(counter, argument)
    waiting = actor.give.remote(1)
    skate.kill(actor)
    with pytest.raises(ActorDiedError):
        skate.get(waiting)
    del holder
    skate.get(signal.set.remote())
    skate.wait([argument or signal.wait.remote()])
    assert all_cpus_are_free()
    assert skate.get(counter.get.remote()) == 0


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_an_actor_whose_last_call_never_starts_ends(end: str) -> None:
    signal = Signal.remote()

    @skate.remote(num_cpus=0)
    def fail_late() -> None:
        skate.get(signal.wait.remote())
        raise LookupError

    actor = Noting.remote(Counter.options(num_cpus=0).remote())
    assert skate.get(actor.give.remote(1)) == 1
    last = actor.give.remote(fail_late.remote())
    del actor
    if end == "cancelled":
        skate.cancel(last)
    else:
        signal.set.remote()
    with pytest.raises(TaskCancelledError if end == "cancelled" else LookupError):
        skate.get(last)
    assert all_cpus_are_free()
    signal.set.remote()


@skate.remote
def make_and_drop() -> int:
    actor = Counter.options(num_cpus=2).remote()
    return skate.get(actor.add.remote(2))


def test_an_actor_that_a_task_drops_ends_while_the_driver_waits() -> None:
    assert skate.get(identity.options(num_cpus=2).remote(make_and_drop.remote())) == 2


# Restarts -------------------------------------------------------------------------


@skate.remote(max_restarts=2)
class Phoenix:
    def __init__(self, start: int, also: Any = None) -> None:
        self.value = start
        self.also = also

    def add(self, n: int = 1) -> int:
        self.value += n
        return self.value

    def given(self) -> Any:
        return self.also

    def is_again(self) -> bool:
        return skate.get_runtime_context().was_current_actor_reconstructed

    def wait(self, signal: skate.ActorHandle[Any]) -> int:
        skate.get(signal.wait.remote())
        return self.value


def test_a_restarted_actor_is_made_from_the_same_arguments() -> None:
    actor = Phoenix.remote(10, also=skate.put([1] * 1000))
    assert skate.get(actor.add.remote()) == 11
    assert skate.get(actor.is_again.remote()) is False
    skate.kill(actor, no_restart=False)
    assert skate.get(actor.add.remote()) == 11
    assert skate.get(actor.given.remote()) == [1] * 1000
    assert skate.get(actor.is_again.remote()) is True


def test_the_list_of_actors_tells_the_state_and_the_restarts() -> None:
    actor = Phoenix.options(name="bird", namespace="zoo").remote(0)
    skate.get(actor.add.remote())
    skate.kill(actor, no_restart=False)
    skate.get(actor.add.remote())
    info = info_of(actor)
    assert (info.state, info.num_restarts) == ("ALIVE", 1)
    assert (info.name, info.namespace) == ("bird", "zoo")
    assert info.class_name.endswith("Phoenix")
    assert info.pid > 0
    skate.kill(actor)
    assert wait_until(has_state(actor, "DEAD"))
    assert "kill" in info_of(actor).death_cause


def test_after_max_restarts_the_actor_is_dead() -> None:
    actor = Phoenix.options(max_restarts=1).remote(0)
    for _ in range(2):
        skate.get(actor.add.remote())
        skate.kill(actor, no_restart=False)
    with pytest.raises(ActorDiedError):
        skate.get(actor.add.remote())


def test_an_actor_may_be_restarted_for_ever() -> None:
    actor = Phoenix.options(max_restarts=-1).remote(0)
    for _ in range(4):
        assert skate.get(actor.add.remote()) == 1
        skate.kill(actor, no_restart=False)
    assert skate.get(actor.add.remote()) == 1


def test_a_call_that_ran_when_the_actor_died_is_unavailable() -> None:
    signal, actor = Signal.remote(), Phoenix.remote(0)
    ref = actor.wait.remote(signal)
    skate.get(signal.wait_for_waiting.remote(1))
    skate.kill(actor, no_restart=False)
    with pytest.raises(ActorUnavailableError, match="restarts"):
        skate.get(ref)
    assert skate.get(actor.add.remote()) == 1


def test_without_restarts_such_a_call_fails_for_good() -> None:
    signal, actor = Signal.remote(), Phoenix.options(max_restarts=0).remote(0)
    ref = actor.wait.remote(signal)
    skate.get(signal.wait_for_waiting.remote(1))
    skate.kill(actor, no_restart=False)
    with pytest.raises(ActorDiedError):
        skate.get(ref)


@pytest.mark.differs(ray="are run again in no fixed order")
def test_max_task_retries_runs_it_again_in_order() -> None:
    signal = Signal.remote()
    actor = Phoenix.options(max_task_retries=1).remote(0)
    skate.get(actor.add.remote(100))
    refs = [actor.wait.remote(signal), actor.add.remote(), actor.add.remote()]
    skate.get(signal.wait_for_waiting.remote(1))
    skate.kill(actor, no_restart=False)
    skate.get(signal.wait_for_waiting.remote(2))
    signal.set.remote()
    assert skate.get(refs) == [0, 1, 2]


@pytest.mark.differs(ray="max_task_retries is the actor's: a call cannot have others")
def test_task_retries_can_be_given_to_a_method_and_to_a_call() -> None:
    signal, actor = Signal.remote(), Phoenix.remote(0)
    with_retry = actor.wait.options(max_task_retries=1).remote(signal)
    skate.get(signal.wait_for_waiting.remote(1))
    skate.kill(actor, no_restart=False)
    skate.get(signal.wait_for_waiting.remote(2))
    skate.kill(actor, no_restart=False)
    with pytest.raises(ActorUnavailableError):
        skate.get(with_retry)


@skate.remote
class Caller:
    def __init__(self, callee: skate.ActorHandle[Any]) -> None:
        self.callee = callee

    def add(self) -> int:
        value: int = skate.get(self.callee.add.remote())
        return value


def test_all_who_hold_a_handle_reach_the_restarted_actor() -> None:
    actor = Phoenix.remote(0)
    callers = [Caller.remote(actor) for _ in range(2)]
    assert sorted(skate.get([c.add.remote() for c in callers])) == [1, 2]
    skate.kill(actor, no_restart=False)
    assert sorted(skate.get([c.add.remote() for c in callers])) == [1, 2]
    assert skate.get(actor.add.remote()) == 3


def test_a_name_and_the_resources_stay_with_a_restarted_actor() -> None:
    actor = Phoenix.options(name="bird", num_cpus=2).remote(0)
    skate.get(actor.add.remote())
    assert skate.available_resources().get("CPU", 0) == 0
    skate.kill(actor, no_restart=False)
    assert skate.get(skate.get_actor("bird").add.remote()) == 1
    assert skate.available_resources().get("CPU", 0) == 0
    del actor

    def free() -> bool:
        return skate.available_resources().get("CPU") == 2

    assert wait_until(free)


def test_a_kill_for_good_ends_an_actor_that_restarts() -> None:
    actor = Phoenix.options(max_restarts=-1).remote(0)
    skate.get(actor.add.remote())
    skate.kill(actor, no_restart=False)
    skate.kill(actor)
    with pytest.raises(ActorDiedError):
        skate.get(actor.add.remote())


@skate.remote(max_restarts=-1)
class FailsLater:
    def __init__(self, path: str) -> None:
        made = Path(path, "made")
        if made.exists():
            raise RuntimeError("not a second time")
        made.touch()

    def call(self) -> None: ...


def test_an_actor_whose_constructor_fails_is_not_restarted_again(
    tmp_path: Path,
) -> None:
    actor = FailsLater.remote(str(tmp_path))
    skate.get(actor.call.remote())
    skate.kill(actor, no_restart=False)
    with pytest.raises(ActorDiedError, match="not a second time"):
        skate.get(actor.call.remote())


def test_a_failed_argument_of_the_constructor_ends_the_actor() -> None:
    @skate.remote
    def fails() -> None:
        raise KeyError("lost")

    actor = Counter.remote(fails.remote())
    with pytest.raises(ActorDiedError, match="lost"):
        skate.get(actor.get.remote())


def test_an_actor_ends_with_the_one_that_created_it() -> None:
    @skate.remote
    class Creator:
        def make(self) -> skate.ActorHandle[Any]:
            self.made = Counter.remote(5)
            return self.made

    creator = Creator.remote()
    made = skate.get(creator.make.remote())
    assert skate.get(made.get.remote()) == 5
    skate.kill(creator)
    assert wait_until(has_state(made, "DEAD"))
    with pytest.raises(ActorDiedError, match="had created it"):
        skate.get(made.get.remote())


# Ends on purpose ------------------------------------------------------------------


@skate.remote(max_restarts=-1)
class Leaver:
    def __init__(self) -> None:
        self.n = 0

    def leave(self) -> None:
        exit_actor()

    def leave_by_exit(self) -> None:
        raise SystemExit

    def call(self) -> int:
        self.n += 1
        return self.n

    async def _async(self) -> None: ...


@skate.remote(max_restarts=-1)
class PlainLeaver:
    def leave(self) -> None:
        exit_actor()

    def leave_by_exit(self) -> None:
        raise SystemExit(0)

    def call(self) -> int:
        return 1


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            Leaver,
            marks=pytest.mark.differs(
                ray="calls of an async actor that follow its leaving may still run"
            ),
        ),
        PlainLeaver,
    ],
)
@pytest.mark.parametrize("how", ["leave", "leave_by_exit", "__ray_terminate__"])
def test_an_actor_that_leaves_is_not_restarted(kind: Any, how: str) -> None:
    actor = kind.remote()
    assert skate.get(actor.call.remote()) == 1
    left, later = getattr(actor, how).remote(), actor.call.remote()
    for ref in (left, later, actor.call.remote()):
        with pytest.raises(ActorDiedError, match="exit_actor"):
            skate.get(ref)
    assert wait_until(has_state(actor, "DEAD"))
    assert info_of(actor).num_restarts == 0


def test_calls_made_before_terminate_still_run() -> None:
    actor = Counter.remote()
    refs = [actor.add.remote() for _ in range(5)]
    actor.__ray_terminate__.remote()
    assert skate.get(refs) == [1, 2, 3, 4, 5]


@skate.remote(max_concurrency=2)
class ThreadedLeaver:
    def wait(self, signal: skate.ActorHandle[Any]) -> str:
        skate.get(signal.wait.remote())
        return "finished"

    def leave(self) -> None:
        exit_actor()


def test_calls_that_run_when_an_actor_leaves_still_end() -> None:
    signal, actor = Signal.remote(), ThreadedLeaver.remote()
    running = actor.wait.remote(signal)
    skate.get(signal.wait_for_waiting.remote(1))
    left = actor.leave.remote()
    skate.wait([left], timeout=0.05)
    signal.set.remote()
    assert skate.get(running) == "finished"
    with pytest.raises(ActorDiedError):
        skate.get(left)


@skate.remote(num_cpus=1, max_concurrency=2)
class Quitter:
    def quit(self) -> None:
        exit_actor()

    def stay(self) -> None:
        pass


def test_an_actor_that_exits_gives_its_cpu_back_whatever_is_cancelled() -> None:
    def free_cpus() -> float:
        return skate.available_resources().get("CPU", 0.0)

    before = free_cpus()
    actor = Quitter.remote()
    skate.get(actor.stay.remote())
    quits, stays = actor.quit.remote(), actor.stay.remote()
    with pytest.raises(ActorDiedError):
        skate.get(quits)
    skate.cancel(stays)
    assert wait_until(lambda: free_cpus() == before, 30)


class Writer:
    def __init__(self, path: Path) -> None:
        self.file = path.open("w")
        self.gone = path.with_suffix(".gone")

    def write(self, text: str) -> None:
        self.file.write(text)

    def leave(self) -> None:
        exit_actor()

    def __del__(self) -> None:
        self.gone.touch()


class AsyncWriter(Writer):
    async def write(self, text: str) -> None:  # type: ignore[override]
        self.file.write(text)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("end", ["the last handle goes", "exit_actor"])
@pytest.mark.parametrize(
    "kind",
    [
        skate.remote(Writer),
        skate.remote(max_concurrency=2)(Writer),
        skate.remote(AsyncWriter),
    ],
    ids=["in order", "threaded", "async"],
)
def test_what_an_actor_wrote_is_in_its_file_when_it_has_ended(
    kind: Any, end: str, tmp_path: Path
) -> None:
    actor = kind.remote(tmp_path / "file.txt")
    skate.get(actor.write.remote("a line"))
    if end == "exit_actor":
        with pytest.raises(ActorDiedError):
            skate.get(actor.leave.remote())
    del actor

    def is_written() -> bool:
        assert skate.get(identity.remote(True))  # the inline engine goes on in here
        return (tmp_path / "file.txt").read_text() == "a line"

    assert wait_until(is_written)
    assert (tmp_path / "file.gone").exists()


def test_exit_actor_is_for_actors() -> None:
    with pytest.raises(TypeError, match=r"skate\.kill"):
        exit_actor()

    @skate.remote
    def leave() -> None:
        exit_actor()

    with pytest.raises(TypeError, match="not code of an actor"):
        skate.get(leave.remote())


# Built-in methods -----------------------------------------------------------------


def test_ready_is_true_once_the_actor_is_made() -> None:
    signal = Signal.remote()
    actor = Counter.remote(wait_for.remote(signal, 3))
    ready = actor.__ray_ready__.remote()
    assert skate.wait([ready], timeout=0.01) == ([], [ready])
    signal.set.remote()
    assert skate.get(ready) is True


def test_any_function_can_be_run_on_an_actor() -> None:
    actor = Counter.remote(3)
    ref = actor.__ray_call__.remote(lambda self, n, *, k: self.value * n + k, 4, k=2)
    assert skate.get(ref) == 14


def test_a_handle_has_no_other_special_methods() -> None:
    with pytest.raises(AttributeError):
        Counter.remote().__ray_other__  # noqa: B018


# Names and lifetimes --------------------------------------------------------------


def test_a_detached_actor_lives_without_a_handle() -> None:
    Counter.options(name="kept", lifetime="detached").remote(4)
    assert skate.get(skate.get_actor("kept").add.remote()) == 5
    assert info_of(skate.get_actor("kept")).is_detached
    skate.kill(skate.get_actor("kept"))

    def gone() -> bool:
        return not [a for a in actors() if a.name == "kept" and a.state != "DEAD"]

    assert wait_until(gone)


@skate.remote
def start_detached(name: str) -> int:
    actor = Counter.options(name=name, lifetime="detached", max_restarts=1).remote(7)
    value: int = skate.get(actor.add.remote())
    return value


@skate.remote
class DetachedMaker:
    def make(self, name: str) -> int:
        value: int = skate.get(start_detached.remote(name))
        actor = Counter.options(
            name=name + "2", lifetime="detached", max_restarts=1
        ).remote(value)
        return value + int(skate.get(actor.add.remote()))


def test_a_detached_actor_outlives_the_one_that_created_it() -> None:
    maker = DetachedMaker.remote()
    assert skate.get(maker.make.remote("left")) == 8 + 9
    skate.kill(maker)
    assert wait_until(has_state(maker, "DEAD"))
    for name, start in [("left", 7), ("left2", 8)]:
        actor = skate.get_actor(name)
        assert skate.get(actor.add.remote()) == start + 2
        skate.kill(actor, no_restart=False)
        assert skate.get(actor.add.remote()) == start + 1
        skate.kill(actor)
        assert wait_until(has_state(actor, "DEAD"))


def test_a_name_is_free_for_detached_actors_after_a_refusal() -> None:
    Counter.options(name="one", lifetime="detached").remote()

    @skate.remote
    def try_again() -> str:
        try:
            Counter.options(name="one", lifetime="detached").remote()
        except ValueError as error:
            return str(error)
        return "no error"

    assert "'one'" in skate.get(try_again.remote())
    skate.kill(skate.get_actor("one"))


def test_an_actor_that_can_never_be_is_refused_at_the_call() -> None:
    with pytest.raises(ResourceError):
        Counter.options(num_cpus=100).remote()


def test_handles_survive_pickling_with_their_options() -> None:
    actor = Phoenix.options(max_task_retries=3).remote(1)
    (again,) = skate.get(identity.remote([actor]))
    assert again.add._spec.max_task_retries == 3
    assert again.add._spec == actor.add._spec
    assert skate.get(again.add.remote()) == 2


def test_processes_of_actors_are_their_own_on_the_embedded_engine(engine: str) -> None:
    @skate.remote
    class Where:
        def pid(self) -> int:
            return os.getpid()

    actor = Where.remote()
    assert (skate.get(actor.pid.remote()) == os.getpid()) == (engine == "inline")


@skate.remote
class Log:
    def __init__(self) -> None:
        self.lines: list[int] = []

    def add(self, line: int) -> None:
        self.lines.append(line)

    def count(self) -> int:
        return len(self.lines)


class Teller:
    """Calls its log at its end, and never before."""

    def __init__(self, log: Any, number: int) -> None:
        self.log, self.number = log, number

    def ready(self) -> None:
        pass

    def __del__(self) -> None:
        self.log.add.remote(self.number)


class AsyncTeller(Teller):
    async def ready(self) -> None:  # type: ignore[override]
        pass


@pytest.mark.differs(ray="what an actor calls at its very end does not reach others")
@pytest.mark.parametrize("kind", [Teller, AsyncTeller], ids=["in order", "async"])
def test_what_an_ending_actor_calls_is_called(kind: type[Any]) -> None:
    log = Log.remote()
    skate.get(log.count.remote())
    for number in range(10):
        teller = skate.remote(kind).remote(log, number)
        skate.get(teller.ready.remote())
        del teller
    assert wait_until(lambda: skate.get(log.count.remote()) == 10)
