from __future__ import annotations

import threading
from typing import Any

import pytest
from helpers import Counter, Signal, identity, wait_for
from polling import wait_until

import skate
from skate.exceptions import ActorAlreadyExistsError, ActorDiedError

pytestmark = [pytest.mark.usefixtures("engine"), pytest.mark.core]


def test_an_actor_keeps_its_state_between_calls() -> None:
    counter = Counter.remote(10)
    assert skate.get([counter.add.remote(), counter.add.remote(5)]) == [11, 16]


def test_calls_of_one_caller_run_in_order() -> None:
    counter = Counter.remote()
    refs = [counter.add.remote() for _ in range(500)]
    assert skate.get(refs) == list(range(1, 501))


def test_a_call_that_waits_for_an_argument_holds_back_later_ones() -> None:
    counter, signal = Counter.remote(), Signal.remote()
    first = counter.add.remote(wait_for.remote(signal, 1))
    second = counter.get.remote()
    assert skate.wait([second], timeout=0.01) == ([], [second])
    signal.set.remote()
    assert skate.get([first, second]) == [1, 1]


def test_two_actors_have_separate_states() -> None:
    one, other = Counter.remote(), Counter.remote()
    skate.get(one.add.remote(3))
    assert skate.get([one.get.remote(), other.get.remote()]) == [3, 0]


@skate.remote
def add_to(counter: skate.ActorHandle[Any], n: int) -> int:
    value: int = skate.get(counter.add.remote(n))
    return value


def test_a_handle_may_be_passed_to_tasks_and_back() -> None:
    counter = Counter.remote()
    assert skate.get(add_to.remote(counter, 2)) == 2
    (again,) = skate.get(identity.remote([counter]))
    assert again == counter
    assert skate.get(again.get.remote()) == 2


@skate.remote
class Parent:
    def __init__(self) -> None:
        self.child = Counter.remote()

    def add(self, n: int) -> int:
        value: int = skate.get(self.child.add.remote(n))
        return value

    def give_child(self) -> skate.ActorHandle[Any]:
        return self.child


def test_an_actor_may_start_and_call_another() -> None:
    parent = Parent.remote()
    assert skate.get([parent.add.remote(1), parent.add.remote(1)]) == [1, 2]


def test_an_actor_may_give_away_the_handle_of_another() -> None:
    parent = Parent.remote()
    child = skate.get(parent.give_child.remote())
    assert skate.get(child.add.remote(4)) == 4


@skate.remote
class Selfish:
    def keep(self, me: skate.ActorHandle[Any]) -> None:
        self.me = me

    def call_me(self) -> skate.ObjectRef[int]:
        ref: skate.ObjectRef[int] = self.me.number.remote()
        return ref

    def number(self) -> int:
        return 7

    def forget(self) -> None:
        del self.me


def test_a_handle_works_inside_its_own_actor() -> None:
    actor = Selfish.remote()
    actor.keep.remote(actor)
    assert skate.get(skate.get(actor.call_me.remote())) == 7
    skate.get(actor.forget.remote())


@skate.remote
class Several:
    @skate.method(num_returns=2)
    def pair(self) -> tuple[int, int]:
        return 1, 2

    @staticmethod
    def static(x: int) -> int:
        return x

    @classmethod
    def name(cls) -> str:
        return cls.__name__

    def _private(self) -> str:
        return "private"

    def __call__(self, x: int) -> int:
        return x + 1

    value = 5


def test_methods_have_options_of_their_own() -> None:
    actor = Several.remote()
    first, second = actor.pair.remote()
    assert skate.get([second, first]) == [2, 1]
    assert skate.get(actor.pair.options(num_returns=1).remote()) == (1, 2)
    assert actor.static.options(num_returns=0).remote(1) is None


def test_static_class_private_and_call_methods_can_be_called() -> None:
    actor = Several.remote()
    refs = [
        actor.static.remote(3),
        actor.name.remote(),
        actor._private.remote(),
        actor.__call__.remote(1),
    ]
    assert skate.get(refs) == [3, "Several", "private", 2]


class Base:
    def __init__(self, value: int, *, factor: int = 1) -> None:
        self.value = value * factor

    def read(self) -> int:
        return self.value


@skate.remote
class Derived(Base):
    def __init__(self, value: int, *, factor: int = 1) -> None:
        super().__init__(value + 1, factor=factor)


def test_an_actor_class_may_inherit_from_an_ordinary_one() -> None:
    assert skate.get(Derived.remote(1, factor=10).read.remote()) == 20


def test_an_unknown_method_is_an_attribute_error_that_names_the_nearest() -> None:
    counter = Counter.remote()
    with pytest.raises(AttributeError, match=r"'gett': did you mean 'get'"):
        counter.gett  # noqa: B018


def test_a_call_that_does_not_fit_the_constructor_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="too many positional"):
        Counter.remote(1, 2)


def test_a_call_that_does_not_fit_the_method_is_a_type_error() -> None:
    counter = Counter.remote()
    with pytest.raises(TypeError, match="positional argument"):
        skate.get(counter.get.remote(1, 2, 3))


# Names ----------------------------------------------------------------------------


def test_a_named_actor_is_found_by_its_name() -> None:
    counter = Counter.options(name="total").remote(3)
    assert skate.get(skate.get_actor("total").get.remote()) == 3
    assert skate.get(find_and_add.remote("total")) == 4
    assert skate.get(counter.get.remote()) == 4


@skate.remote
def find_and_add(name: str) -> int:
    value: int = skate.get(skate.get_actor(name).add.remote())
    return value


def test_a_missing_name_is_a_value_error_that_lists_the_others() -> None:
    _counter = Counter.options(name="total").remote()
    with pytest.raises(ValueError, match=r"'totl'.*'total'"):
        skate.get_actor("totl")


def test_a_name_can_be_taken_once() -> None:
    first = Counter.options(name="total").remote(1)
    with pytest.raises(ActorAlreadyExistsError, match="'total'"):
        Counter.options(name="total").remote()
    assert skate.get(first.get.remote()) == 1


def test_get_if_exists_shares_the_actor() -> None:
    shared = Counter.options(name="total", get_if_exists=True)
    first, second = shared.remote(5), shared.remote(99)
    assert first == second
    assert skate.get(second.get.remote()) == 5


def test_namespaces_keep_names_apart() -> None:
    here = Counter.options(name="total").remote(1)
    there = Counter.options(name="total", namespace="elsewhere").remote(2)
    found = [skate.get_actor("total"), skate.get_actor("total", "elsewhere")]
    assert found == [here, there]


def test_a_name_is_free_again_when_its_actor_is_gone() -> None:
    counter = Counter.options(name="total").remote()
    skate.kill(counter)

    def is_free() -> bool:
        try:
            skate.get_actor("total")
        except ValueError:
            return True
        return False

    assert wait_until(is_free)
    again = Counter.options(name="total").remote(8)
    assert skate.get(again.get.remote()) == 8


# The end of an actor --------------------------------------------------------------


def test_calls_of_a_killed_actor_fail() -> None:
    counter = Counter.remote()
    skate.get(counter.add.remote())
    skate.kill(counter)
    with pytest.raises(ActorDiedError, match="kill"):
        skate.get(counter.add.remote())


def test_calls_that_wait_when_the_actor_is_killed_fail() -> None:
    signal = Signal.remote()
    blocked = signal.wait.remote()
    skate.get(signal.wait_for_waiting.remote(1))
    skate.kill(signal)
    with pytest.raises(ActorDiedError):
        skate.get(blocked)


@skate.remote
class Blocked:
    def wait(self, signal: skate.ActorHandle[Any]) -> None:
        skate.get(signal.wait.remote())


def test_an_actor_that_waits_can_be_killed() -> None:
    signal, actor = Signal.remote(), Blocked.remote()
    refs = [actor.wait.remote(signal), actor.wait.remote(signal)]
    skate.get(signal.wait_for_waiting.remote(1))
    skate.kill(actor)
    for ref in refs:
        with pytest.raises(ActorDiedError):
            skate.get(ref)
    signal.set.remote()


def test_an_actor_may_be_killed_twice() -> None:
    counter = Counter.remote()
    skate.kill(counter)
    skate.kill(counter)


def test_only_actors_can_be_killed() -> None:
    with pytest.raises(TypeError, match="handle of an actor"):
        skate.kill(skate.put(1))  # type: ignore[arg-type]


@skate.remote
class Unborn:
    def __init__(self) -> None:
        raise KeyError("no such thing")

    def call(self) -> None: ...


def test_a_failing_constructor_fails_the_calls_and_says_why() -> None:
    actor = Unborn.remote()
    for _ in range(2):
        with pytest.raises(ActorDiedError, match="KeyError: 'no such thing'"):
            skate.get(actor.call.remote())


def test_calls_made_before_the_last_handle_went_still_run() -> None:
    ref = Counter.remote(41).add.remote()
    assert skate.get(ref) == 42


@skate.remote
class Holder:
    """Keeps its name taken as long as it lives."""

    def hold(self, refs: list[Any]) -> None:
        self.refs = refs


def test_an_actor_ends_with_its_last_handle() -> None:
    holder = Holder.options(name="holder").remote()
    skate.get(holder.hold.remote([]))
    method = holder.hold
    del holder
    assert skate.get_actor("holder")
    del method

    def is_gone() -> bool:
        try:
            skate.get_actor("holder")
        except ValueError:
            return True
        return False

    assert wait_until(is_gone)


def test_a_method_of_a_handle_keeps_the_actor_alive() -> None:
    get = Counter.remote(3).get
    assert skate.get(get.remote()) == 3


# Concurrency ----------------------------------------------------------------------


@skate.remote(max_concurrency=3)
class Threaded:
    def wait(self, signal: skate.ActorHandle[Any]) -> int:
        skate.get(signal.wait.remote())
        return threading.get_ident()


def test_a_threaded_actor_runs_several_calls_at_once() -> None:
    signal, actor = Signal.remote(), Threaded.remote()
    refs = [actor.wait.remote(signal) for _ in range(4)]
    assert skate.get(signal.wait_for_waiting.remote(3)) == 3
    assert skate.wait(refs, timeout=0.01) == ([], refs)
    assert skate.get(signal.waiting.remote()) == 3  # the limit holds the fourth back
    signal.set.remote()
    assert len(set(skate.get(refs))) >= 3


@skate.remote
class Mixed:
    async def echo(self, x: int) -> int:
        return x

    def plain(self) -> bool:
        import asyncio

        return asyncio.get_running_loop() is not None

    async def fail(self) -> None:
        raise ValueError("from a coroutine")

    async def call(self, counter: skate.ActorHandle[Any]) -> int:
        values = await counter.add.remote(), await counter.add.remote()
        return sum(values)


def test_an_async_actor_runs_coroutines_and_methods_on_its_loop() -> None:
    actor = Mixed.remote()
    assert skate.get([actor.echo.remote(1), actor.plain.remote()]) == [1, True]


def test_an_error_of_a_coroutine_is_the_users() -> None:
    with pytest.raises(ValueError, match="from a coroutine"):
        skate.get(Mixed.remote().fail.remote())


def test_a_coroutine_may_await_refs() -> None:
    assert skate.get(Mixed.remote().call.remote(Counter.remote())) == 3


def test_async_calls_overlap_up_to_max_concurrency() -> None:
    signal = Signal.options(max_concurrency=3).remote()
    refs = [signal.wait.remote() for _ in range(2)]
    assert skate.get(signal.wait_for_waiting.remote(2)) == 2
    signal.set.remote()
    assert skate.get(refs) == [True, True]


@skate.remote
class Sleeper:
    async def sleep(self) -> str:
        import asyncio

        await asyncio.sleep(0.01)
        return "awake"


def test_timers_of_an_async_actor_run_while_nobody_calls() -> None:
    assert skate.get(Sleeper.remote().sleep.remote()) == "awake"


@skate.remote
class Introspective:
    def ids(self) -> tuple[Any, ...]:
        here = skate.get_runtime_context()
        return here.get_actor_id(), here.get_worker_id(), here.get_task_name()


def test_the_runtime_context_tells_which_actor_runs() -> None:
    actor = Introspective.remote()
    first, second = skate.get([actor.ids.remote(), actor.ids.remote()])
    assert first[0] is not None
    assert first[:2] == second[:2]
    assert first[2].endswith("Introspective.ids")
