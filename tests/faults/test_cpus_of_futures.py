"""A process that has used futures keeps its CPU while it computes.

The thread that ends futures waits for as long as the process lives; that is no wait of
the program's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from polling import wait_until

import skate

pytest.importorskip("skate._core", reason="skate's C++ core is not built")


@pytest.fixture
def session() -> Iterator[None]:
    with skate.init("embedded", num_cpus=1, resources={"x": 1}):
        yield


@skate.remote
def child() -> int:
    return 1


def use_a_future() -> int:
    # It needs the CPU of its caller, which waits outside of skate.
    return child.remote().future().result(timeout=30)


def compute(folder: Path) -> None:
    (folder / "started").touch()
    while not (folder / "end").exists():
        pass


class Actor:
    use_a_future = staticmethod(use_a_future)
    compute = staticmethod(compute)


Call = Callable[..., "skate.ObjectRef[int]"]


def in_the_pool() -> tuple[Call, Call]:
    return skate.remote(use_a_future).remote, skate.remote(compute).remote


def on_a_leased_worker() -> tuple[Call, Call]:
    leased = {"num_cpus": 1, "resources": {"x": 1}}
    return (
        skate.remote(use_a_future).options(**leased).remote,
        skate.remote(compute).options(**leased).remote,
    )


def in_an_actor() -> tuple[Call, Call]:
    actor = skate.remote(num_cpus=1)(Actor).remote()
    return actor.use_a_future.remote, actor.compute.remote


def free_cpus() -> float:
    return skate.available_resources()["CPU"]


@pytest.mark.parametrize(
    "calls", [in_the_pool, on_a_leased_worker, in_an_actor], ids=lambda f: f.__name__
)
def test_cpu_is_lent_while_a_future_is_pending_and_not_after(
    session: None, tmp_path: Path, calls: Callable[[], tuple[Call, Call]]
) -> None:
    use, compute = calls()
    for _ in range(3):
        assert skate.get(use(), timeout=30) == 1
    ref = compute(tmp_path)
    assert wait_until((tmp_path / "started").exists)
    assert not wait_until(lambda: free_cpus() > 0, timeout=0.4)
    (tmp_path / "end").touch()
    skate.get(ref, timeout=30)


class Threaded:
    use_a_future = staticmethod(use_a_future)
    compute = staticmethod(compute)

    def wait_for(self, refs: list[skate.ObjectRef[int]]) -> int:
        return skate.get(refs[0])


class Async:
    async def wait_for(self, refs: list[skate.ObjectRef[int]]) -> int:
        return await refs[0]

    async def compute(self, folder: Path) -> None:
        compute(folder)


@skate.remote(num_cpus=0)
class Gate:
    """Another actor, whose answer takes as long as the test wants."""

    async def wait_until(self, path: Path) -> int:
        import asyncio

        while not path.exists():
            await asyncio.sleep(0.01)
        return 1


@pytest.mark.parametrize("code", [Threaded, Async], ids=lambda f: f.__name__)
def test_an_actor_has_its_cpu_while_one_call_computes_and_another_waits(
    session: None, tmp_path: Path, code: type
) -> None:
    gate = Gate.remote()
    ref = gate.wait_until.remote(tmp_path / "opened")
    actor = skate.remote(num_cpus=1, max_concurrency=2)(code).remote()
    waits = actor.wait_for.remote([ref])
    assert wait_until(lambda: free_cpus() == 1)
    computes = actor.compute.remote(tmp_path)
    assert wait_until((tmp_path / "started").exists)
    assert not wait_until(lambda: free_cpus() > 0, timeout=0.4)
    (tmp_path / "end").touch()
    skate.get(computes, timeout=30)
    assert wait_until(lambda: free_cpus() == 1)
    (tmp_path / "opened").touch()
    assert skate.get(waits, timeout=30) == 1
    assert wait_until(lambda: free_cpus() == 0)
