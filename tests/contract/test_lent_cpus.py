"""An actor lends its CPUs to what its calls wait for, however it runs them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import skate


@skate.remote
def child(x: int) -> int:
    return x + 1


class Parent:
    def get(self, x: int) -> int:
        return skate.get(child.remote(x))


class AsyncParent:
    async def wait(self, x: int) -> int:
        return await child.remote(x)


Calls = Callable[..., list["skate.ObjectRef[int]"]]


def of_one_thread() -> Calls:
    actor = skate.remote(num_cpus=1)(Parent).remote()
    return lambda n: [actor.get.remote(i) for i in range(n)]


def of_threads() -> Calls:
    actor = skate.remote(num_cpus=1, max_concurrency=2)(Parent).remote()
    return lambda n: [actor.get.remote(i) for i in range(n)]


def of_a_concurrency_group() -> Calls:
    options = {"num_cpus": 1, "concurrency_groups": {"group": 2}}
    actor = skate.remote(**options)(Parent).remote()
    call = actor.get.options(concurrency_group="group")
    return lambda n: [call.remote(i) for i in range(n)]


def of_coroutines() -> Calls:
    actor = skate.remote(num_cpus=1)(AsyncParent).remote()
    return lambda n: [actor.wait.remote(i) for i in range(n)]


_SEVERAL = pytest.mark.differs(inline="such an actor holds its CPUs while it waits")


@pytest.mark.parametrize(
    "make",
    [
        of_one_thread,
        pytest.param(of_threads, marks=_SEVERAL),
        pytest.param(of_a_concurrency_group, marks=_SEVERAL),
        pytest.param(of_coroutines, marks=_SEVERAL),
    ],
    ids=lambda f: f.__name__,
)
def test_an_actor_that_has_the_only_cpu_lends_it_to_what_its_calls_wait_for(
    start: Callable[..., object], make: Callable[[], Calls]
) -> None:
    start(num_cpus=1)
    calls = make()
    for n in (1, 2, 5):  # fewer and more than it runs at once
        assert skate.get(calls(n), timeout=60) == list(range(1, n + 1))
