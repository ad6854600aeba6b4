from __future__ import annotations

import pickle
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Counter, Signal, add, fail, identity, wait_for

import skate
from skate.exceptions import RemoteTraceback, SkateError, TaskError

pytestmark = [pytest.mark.usefixtures("engine"), pytest.mark.core]


def test_a_failed_task_raises_the_users_own_exception_type() -> None:
    with pytest.raises(ValueError, match="three") as caught:
        skate.get(fail.remote(ValueError("three", 3)))
    assert isinstance(caught.value, TaskError)
    assert isinstance(caught.value, SkateError)
    assert caught.value.args == ("three", 3)
    assert isinstance(caught.value.cause, ValueError)
    assert caught.value.task_name.endswith("fail")


@skate.remote(num_cpus=0)
def pass_on(x: Any) -> Any:
    return x


@skate.remote(num_cpus=0)
class PassOn:
    def pass_on(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize("of", ["tasks", "calls of an actor"])
def test_an_error_passes_through_a_long_chain(of: str) -> None:
    step = pass_on if of == "tasks" else PassOn.remote().pass_on
    signal = Signal.remote()
    ref = fail.remote(wait_for.remote(signal, LookupError("first")))
    for _ in range(500):
        ref = step.remote(ref)
    signal.set.remote()
    with pytest.raises(LookupError, match="first"):
        skate.get(ref)


class StatusError(Exception):
    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"status {code}")
        self.code = code
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_status_error, (self.code, self.detail)


def _make_status_error(code: int, detail: str) -> StatusError:
    return StatusError(code, detail=detail)


def test_attributes_of_the_users_exception_are_kept() -> None:
    with pytest.raises(StatusError, match="status 7") as caught:
        skate.get(fail.remote(StatusError(7, detail="seven")))
    assert (caught.value.code, caught.value.detail) == (7, "seven")


def test_attributes_of_built_in_exceptions_are_kept() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        skate.get(fail.remote(FileNotFoundError(2, "No such file", "data.csv")))
    assert caught.value.filename == "data.csv"
    assert caught.value.errno == 2
    assert "data.csv" in str(caught.value)


class UnpicklableError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


@skate.remote
def raise_unpicklable() -> None:
    raise UnpicklableError("cannot travel")


def test_an_exception_that_cannot_be_pickled_still_tells_its_story() -> None:
    with pytest.raises(TaskError, match="UnpicklableError: cannot travel") as caught:
        skate.get(raise_unpicklable.remote())
    assert caught.value.cause is None
    assert "in raise_unpicklable" in caught.value.remote_traceback


class FinalError(Exception):
    def __init_subclass__(cls) -> None:
        raise TypeError("no subclasses, please")


def test_an_exception_class_that_refuses_subclasses_is_the_cause() -> None:
    with pytest.raises(TaskError, match="FinalError: alone") as caught:
        skate.get(fail.remote(FinalError("alone")))
    assert type(caught.value.cause) is FinalError


@skate.remote
def stop_iteration() -> None:
    raise StopIteration("would end a loop silently")


def test_a_stop_iteration_cannot_end_the_callers_loop() -> None:
    with pytest.raises(TaskError) as caught:
        skate.get(stop_iteration.remote())
    assert not isinstance(caught.value, StopIteration)


@skate.remote
def middle(error: Exception) -> None:
    skate.get(fail.remote(error))


@skate.remote
def top(error: Exception) -> None:
    skate.get(middle.remote(error))


def test_an_error_passes_through_nested_tasks_as_itself() -> None:
    with pytest.raises(KeyError) as caught:
        skate.get(top.remote(KeyError("deep")))
    assert isinstance(caught.value, TaskError)
    assert type(caught.value.cause) is KeyError


def test_the_traceback_shows_each_task_once_and_the_users_frames_only() -> None:
    with pytest.raises(KeyError) as caught:
        skate.get(top.remote(KeyError("deep")))
    text = "".join(traceback.format_exception(caught.value.__cause__))
    for line in ("raise error", "fail.remote(error)", "middle.remote(error)"):
        assert text.count(line) == 1
    assert text.count("KeyError: 'deep'") == 1
    assert str(Path(skate.__file__).parent) not in text
    assert isinstance(caught.value.__cause__, RemoteTraceback)


@skate.remote
def reraise() -> None:
    try:
        skate.get(fail.remote(KeyError("inner")))
    except KeyError as error:
        raise RuntimeError("outer") from error


def test_the_cause_of_an_error_is_part_of_the_remote_traceback() -> None:
    with pytest.raises(RuntimeError, match="outer") as caught:
        skate.get(reraise.remote())
    text = caught.value.remote_traceback
    assert text.index("KeyError: 'inner'") < text.index("RuntimeError: outer")


def test_a_task_does_not_run_if_an_argument_failed() -> None:
    counter = Counter.remote()
    bad = fail.remote(ValueError("upstream"))
    refs = [add.remote(bad, 1), identity.remote(x=bad), counter.add.remote(bad)]
    for ref in refs:
        with pytest.raises(ValueError, match="upstream") as caught:
            skate.get(ref)
        assert caught.value.task_name.endswith("fail")
    assert skate.get(counter.get.remote()) == 0


def test_a_failed_ref_raises_each_time_anew() -> None:
    ref = fail.remote(ValueError("again"))
    caught = []
    for _ in range(2):
        with pytest.raises(ValueError, match="again") as info:
            skate.get(ref)
        caught.append(info.value)
    assert caught[0] is not caught[1]


def test_an_error_may_be_caught_inside_a_task() -> None:
    assert skate.get(survive.remote()) == "caught"


@skate.remote
def survive() -> str:
    try:
        skate.get(fail.remote(OSError("inner")))
    except OSError:
        return "caught"
    return "not raised"


def test_an_error_of_a_task_survives_pickling() -> None:
    with pytest.raises(ValueError, match="three") as caught:
        skate.get(fail.remote(ValueError("three")))
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, ValueError)
    assert isinstance(again, TaskError)
    assert again.remote_traceback == caught.value.remote_traceback


def test_the_traceback_of_a_closure_shows_its_file_and_line() -> None:
    divisor = 0

    @skate.remote
    def divide() -> float:
        return 1 / divisor  # the line to be shown

    with pytest.raises(ZeroDivisionError) as caught:
        skate.get(divide.remote())
    text = "".join(traceback.format_exception(caught.value))
    assert __file__ in text
    assert "the line to be shown" in text


class Partial(Exception):
    """Brings along what was done before it failed."""

    def __init__(self, done: list[Any]) -> None:
        super().__init__(done)
        self.done = done


@skate.remote
def fails_half_way() -> None:
    raise Partial([skate.put("first"), identity.remote(np.arange(100_000))])


@skate.remote
def waits_for(refs: list[Any]) -> None:
    skate.get(refs)


@pytest.mark.usefixtures("engine")
@pytest.mark.differs(ray="Ray counts no refs in exceptions: only the message travels")
@pytest.mark.parametrize("nested", [False, True])
def test_refs_in_an_exception_live_as_long_as_it(nested: bool) -> None:
    ref = fails_half_way.remote()
    if nested:
        ref = waits_for.remote([ref])
    with pytest.raises(Partial) as caught:
        skate.get(ref)
    del ref
    text, array = skate.get(caught.value.done)
    assert text == "first"
    assert array[-1] == 99_999


def test_an_exception_is_a_value_like_any_other() -> None:
    assert isinstance(skate.get(identity.remote(ValueError("kept"))), ValueError)


def test_an_actor_survives_an_error_of_a_method() -> None:
    counter = Counter.remote()
    with pytest.raises(TypeError):
        skate.get(counter.add.remote("text"))
    assert skate.get(counter.add.remote()) == 1


# What cannot be pickled -----------------------------------------------------------


def test_a_function_that_cannot_be_pickled_names_what_it_captures() -> None:
    guard = threading.Lock()

    @skate.remote
    def locked() -> None:
        guard.acquire()

    with pytest.raises(
        TypeError, match=r"locked: captured variable 'guard', a _thread"
    ):
        locked.remote()


def test_an_argument_that_cannot_be_pickled_names_the_part_at_fault() -> None:
    config = {"model": [1, threading.Lock()]}
    with pytest.raises(TypeError, match=r"argument 0 of .*identity.*\['model'\]\[1\]"):
        identity.remote(config)
    with pytest.raises(TypeError, match="argument 'x' of"):
        identity.remote(x=threading.Lock())


def test_put_names_the_part_that_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match=r"\[1\], a _thread.lock"):
        skate.put([1, threading.Lock()])


@skate.remote
def return_generator() -> Any:
    return (x for x in range(3))


def test_a_result_that_cannot_be_pickled_fails_the_task() -> None:
    with pytest.raises(TypeError, match="Return a list of its items"):
        skate.get(return_generator.remote())


def test_a_ref_cannot_be_pickled_behind_the_engines_back() -> None:
    with pytest.raises(TypeError, match="Pass it to a task"):
        pickle.dumps(skate.put(1))


def test_put_of_a_ref_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="a ref already"):
        skate.put(skate.put(1))


@skate.remote
class Adder:
    def add(self, a: int, b: int) -> int:
        return a + b


def test_of_several_failed_arguments_the_first_one_counts() -> None:
    adder = Adder.remote()
    late = fail.remote(ValueError("the first"))
    early = fail.remote(ValueError("the second"))
    skate.wait([early])
    for call in (
        add.remote(late, early),
        add.options(num_cpus=2).remote(late, early),
        adder.add.remote(late, early),
        adder.add.remote(late, b=early),
    ):
        with pytest.raises(ValueError, match="the first"):
            skate.get(call)


@skate.remote
def raise_last_of(n: int) -> None:
    """What a loop raises that tries again, n times, where it handles the last error."""
    last = ValueError(0)
    for i in range(1, n):
        try:
            try:
                raise last
            except ValueError:
                raise ValueError(i)  # noqa: B904 - a chain of contexts is wanted
        except ValueError as error:
            last = error
    raise last


@skate.remote
class Retrying:
    def fail(self, n: int) -> None:
        raise_last_of.__wrapped__(n)


@skate.remote
class RetryingInLoop:
    async def fail(self, n: int) -> None:
        raise_last_of.__wrapped__(n)


@pytest.mark.parametrize("where", ["task", "actor", "async actor"])
def test_an_error_with_a_thousand_errors_before_it_is_told(where: str) -> None:
    if where == "task":
        ref = raise_last_of.options(max_retries=0).remote(1500)
    else:
        actor = Retrying.remote() if where == "actor" else RetryingInLoop.remote()
        ref = actor.fail.remote(1500)
    with pytest.raises(ValueError, match="1499"):
        skate.get(ref, timeout=60)


class NamelessError(Exception):
    """Neither it nor what it says can be had."""

    def __str__(self) -> str:
        raise RecursionError("no text")

    def __reduce__(self) -> Any:
        raise RecursionError("no bytes")


@skate.remote
def fail_namelessly() -> None:
    raise NamelessError


def test_an_error_that_can_say_nothing_is_told() -> None:
    with pytest.raises(TaskError, match="raised NamelessError"):
        skate.get(fail_namelessly.options(max_retries=0).remote())
