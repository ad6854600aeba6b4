"""Each limit is checked where it is reached, by an error that names it, or is none.

Processes, address space, sizes of messages, descriptors, counts. The slow ones are in
tests/size.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import children, zygote_and_workers
from programs import run

import skate
from skate.exceptions import (
    ActorDiedError,
    EngineDiedError,
    GetTimeoutError,
    SkateError,
)
from skate.util import placement_group, remove_placement_group

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

MIB = 1 << 20
LARGE = {
    f"VARIABLE_{i}": f"{i:03}" * 1000 for i in range(100)
}  # 300 kB; a packet has 208


@pytest.fixture
def session() -> Iterator[None]:
    with skate.init("embedded", num_cpus=2, resources={"gate": 1}):
        yield


@skate.remote
def answer(x: Any = None) -> Any:
    return x


@skate.remote
class Held:
    def __init__(self, error: str = "", log: str = "") -> None:
        if log:
            with open(log, "a") as file:
                file.write(".")
        if error:
            raise RuntimeError(error)

    def get(self, x: Any = None) -> Any:
        return x

    def variables(self, prefix: str) -> int:
        return variables(prefix)


def variables(prefix: str) -> int:
    return sum(name.startswith(prefix) for name in os.environ)


# Processes ----------------------------------------------------------------------------


def test_dead_workers_whose_results_are_held_use_up_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that had a GPU ends after its task; its result stays.

    Six times as many as there are places; tests/size has 10,000.
    """
    monkeypatch.setenv("SKATE_MAX_PROCESSES", "16")
    n = 100
    with skate.init("embedded", num_cpus=2, num_gpus=1):

        @skate.remote(num_gpus=1)
        def on_gpu(i: int) -> np.ndarray:
            return np.full(400, i)  # too large for a message

        refs = [on_gpu.remote(i) for i in range(n)]
        for i, ref in enumerate(refs):
            assert skate.get(ref, timeout=60)[0] == i
        assert [int(value[0]) for value in skate.get(refs)] == list(range(n))


@pytest.mark.timeout(200)
def test_many_workers_that_are_wanted_at_the_same_moment(session: None) -> None:
    """Their forks are one list of commands: nobody may wait for who waits for him.

    A socket takes some 200 of them at a time.
    """
    n = 300

    @skate.remote(num_cpus=0)
    class Door:
        def __init__(self) -> None:
            self.opened = asyncio.Event()

        async def wait(self) -> None:
            await self.opened.wait()

        async def open(self) -> None:
            self.opened.set()

    @skate.remote(num_cpus=0, resources={"gate": 1})
    def hold(door: Any) -> None:
        skate.get(door.wait.remote())

    @skate.remote(num_cpus=0, resources={"gate": 1 / n})
    def pass_through(i: int) -> int:
        return i

    door = Door.remote()
    holder = hold.remote(door)
    refs = [pass_through.remote(i) for i in range(n)]
    skate.wait(refs, timeout=0.2)
    skate.get(door.open.remote())
    skate.get(holder, timeout=60)
    assert skate.get(refs, timeout=120) == list(range(n))


# Address space ------------------------------------------------------------------------


@pytest.mark.timeout(200)
def test_the_store_of_a_large_machine_does_not_use_up_the_addresses() -> None:
    run(
        """
        import numpy as np, skate

        @skate.remote(num_cpus=0)
        class Peer:
            def make(self, i):
                return np.full(100_000, i)
            def read(self, x):
                return float(x.sum())

        with skate.init("embedded", num_cpus=2, object_store_memory=4 << 40):
            peers = [Peer.remote() for _ in range(40)]
            values = [peer.make.remote(i) for i, peer in enumerate(peers)]
            for i, value in enumerate(skate.get(values, timeout=90)):
                assert value[0] == i
            for peer in peers[:5]:  # each maps all the others
                assert skate.get([peer.read.remote(v) for v in values], timeout=60) == [
                    100_000.0 * i for i in range(40)
                ]
        """
    )


# Messages to and from the supervisor --------------------------------------------------


@pytest.mark.timeout(200)
def test_placement_groups_that_were_removed_cost_nothing_later(session: None) -> None:
    for i in range(2500):
        group = placement_group([{"CPU": 0.01}], name=f"group {i} {'n' * 100}")
        remove_placement_group(group)
    last = placement_group([{"CPU": 1}])
    assert last.wait(30)
    assert skate.get(answer.remote(1), timeout=30) == 1


@pytest.mark.timeout(200)
def test_thousands_of_placement_groups_at_the_same_time(session: None) -> None:
    names = [f"group {i} {'n' * 200}" for i in range(1500)]
    groups = [placement_group([{"CPU": 0.0001}], name=name) for name in names]
    assert groups[-1].wait(60)
    assert len({group.id for group in groups}) == 1500
    for group in groups:
        remove_placement_group(group)
    assert placement_group([{"CPU": 2}]).wait(60)


@pytest.mark.timeout(200)
def test_why_answers_with_thousands_of_tasks_in_the_queue(session: None) -> None:
    refs = [
        answer.options(num_cpus=0, resources={"gate": 1}).remote(i) for i in range(8000)
    ]
    never = answer.options(num_cpus=0, resources={"gate": 1}).remote(-1)
    assert isinstance(skate.why(never), str)
    assert skate.get(answer.remote(1), timeout=60) == 1
    assert skate.get(refs[:100], timeout=60) == list(range(100))
    del refs, never


def test_a_runtime_env_may_be_larger_than_a_packet(session: None) -> None:
    env = {"env_vars": LARGE}

    @skate.remote(runtime_env=env)
    def count(prefix: str) -> int:
        return variables(prefix)

    assert skate.get(count.remote("VARIABLE_"), timeout=60) == len(LARGE)
    actor = Held.options(runtime_env=env).remote()
    assert skate.get(actor.variables.remote("VARIABLE_"), timeout=60) == len(LARGE)
    assert skate.get(answer.remote(1), timeout=60) == 1


def test_a_constructors_error_may_be_larger_than_a_packet(
    session: None, tmp_path: Path
) -> None:
    text = "it cannot be " * 20_000
    log = tmp_path / "constructions"
    for restarts in (0, -1):
        log.write_text("")
        actor = Held.options(max_restarts=restarts).remote(text, str(log))
        with pytest.raises(ActorDiedError, match="it cannot be"):
            skate.get(actor.get.remote(), timeout=60)
        assert log.read_text() == "."  # an error of the program's is not tried again


@pytest.mark.parametrize("size", [100_000, 250_000, 3_000_000])
def test_texts_of_any_size_get_through(session: None, size: int) -> None:
    """Names, namespaces, labels: whatever goes by way of the supervisor."""
    text = "n" * size
    attempts: list[Any] = [
        lambda: skate.get(Held.options(name=text).remote().get.remote(1), timeout=60),
        lambda: skate.get_actor(text),
        lambda: skate.get(answer.options(name=text).remote(1), timeout=60),
        lambda: placement_group([{"CPU": 0.1}], name=text).wait(60),
        lambda: skate.get(answer.options(resources={text: 1}).remote(), timeout=60),
    ]
    for attempt in attempts:
        try:
            attempt()
        except (EngineDiedError, GetTimeoutError):
            raise
        except (SkateError, ValueError, TypeError):
            pass  # refused by name
    assert skate.get(answer.remote(1), timeout=30) == 1


def test_an_error_in_a_task_may_be_of_any_size(session: None) -> None:
    @skate.remote
    def fail(n: int) -> None:
        raise ValueError("y" * n)

    for n in (10, 3000, 300_000, 30_000_000):
        with pytest.raises(ValueError, match="yyy") as raised:
            skate.get(fail.remote(n), timeout=60)
        assert len(raised.value.args[0]) == n


# Descriptors --------------------------------------------------------------------------


@pytest.mark.timeout(200)
@pytest.mark.parametrize("limit", [64, 128, 256])
def test_running_out_of_descriptors_is_an_error_at_the_call(limit: int) -> None:
    """And the session goes on: what there was works, what ends gives back."""
    out = run(
        """
        import time
        import numpy as np, skate
        from skate.exceptions import SkateError

        @skate.remote(num_cpus=0)
        class Peer:
            def make(self, i):
                return np.full(100_000, i)

        @skate.remote
        def answer(x):
            return x

        try:
            session = skate.init("embedded", num_cpus=2)
        except (SkateError, OSError) as error:
            assert "descriptor" in str(error) or "open files" in str(error), error
            raise SystemExit("ok")
        with session:
            assert skate.get(answer.remote(1), timeout=30) == 1
            failed = 0
            peers = []
            for i in range(120):
                try:
                    peer = Peer.remote()
                    peers.append(peer)
                    assert skate.get(peer.make.remote(i), timeout=40)[0] == i
                except SkateError as error:
                    assert not isinstance(error, skate.exceptions.GetTimeoutError), i
                    assert not isinstance(error, skate.exceptions.EngineDiedError), i
                    text = str(error)
                    assert "descriptor" in text or "open files" in text, error
                    failed += 1
                    del peers[i - failed + 1 :]
                assert skate.get(answer.remote(i), timeout=30) == i
                if failed > 3:
                    break
            peers.clear()
            peer = None
            until = time.monotonic() + 60
            while True:  # they end, and there is room again
                try:
                    assert skate.get(Peer.remote().make.remote(7), timeout=40)[0] == 7
                    break
                except SkateError:
                    assert time.monotonic() < until
            print("failed", failed)
        """.replace('raise SystemExit("ok")', "raise SystemExit(0)"),
        descriptors=limit,
    )
    assert out == "" or out.startswith("failed")


def test_a_limit_of_file_sizes_that_prevents_a_session_is_named() -> None:
    out = run(
        """
        import resource
        import skate

        @skate.remote
        def answer(x):
            return x

        for mebibytes in (1, 60, 1 << 40):
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            size = min(mebibytes << 20, (1 << 63) - 1)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
            try:
                with skate.init("embedded", num_cpus=1):
                    print(skate.get(answer.remote(7)))
            except skate.exceptions.ResourceError as error:
                print("RLIMIT_FSIZE" in str(error))
        """
    )
    assert out == "True\nTrue\n7\n"


def test_text_without_a_lines_end_is_printed_though_no_thread_can_be_had() -> None:
    out = run(
        """
        import resource
        import skate

        @skate.remote
        def say():
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 20), hard))
            try:
                print("no line's end", end="")
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

        with skate.init("embedded", num_cpus=1):
            skate.get(say.remote())
        """
    )
    assert out.endswith("no line's end\n")


def test_an_idle_worker_costs_few_descriptors(session: None) -> None:
    def of(pid: int) -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    actors = [Held.options(num_cpus=0).remote() for _ in range(5)]
    skate.get([actor.get.remote() for actor in actors])
    (supervisor,) = children(os.getpid())
    driver, keeper = of(os.getpid()), of(supervisor)
    actors += [Held.options(num_cpus=0).remote() for _ in range(20)]
    skate.get([actor.get.remote(i) for i, actor in enumerate(actors)])
    assert of(os.getpid()) - driver <= 2 * 20
    assert of(supervisor) - keeper <= 5 * 20
    for pid in zygote_and_workers(os.getpid())[1]:
        assert of(pid) <= 24


# Counts -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [255, 256, 257, 65_535, 65_536, 65_537, 1 << 20])
def test_a_number_of_returns_is_taken_or_refused(session: None, n: int) -> None:
    @skate.remote
    def many(n: int) -> list[int]:
        return list(range(n))

    try:
        refs = many.options(num_returns=n).remote(n)
    except ValueError as error:
        assert n > 65_535
        assert str(n) in str(error)  # noqa: PT017
        return
    assert isinstance(refs, list)
    assert len(refs) == n
    assert skate.get(refs[-1], timeout=60) == n - 1
    assert skate.get(refs[0], timeout=60) == 0


@pytest.mark.parametrize(
    "n", [2**31, 2**32, 2**32 + 1, 2**63, 2**64, 2**64 + 1, 10**30]
)
def test_an_option_that_fits_no_field_is_refused_by_name(session: None, n: int) -> None:
    options = [
        "num_returns", "max_retries", "max_restarts", "max_task_retries", "max_calls",
        "max_concurrency", "max_pending_calls", "_generator_backpressure_num_objects",
    ]  # fmt: skip
    for name in options:
        for made in (answer, Held):
            if made is Held and name == "num_returns":
                continue
            try:
                ref = made.options(**{name: n}).remote()  # type: ignore[attr-defined]
                if made is Held:
                    ref = ref.get.remote()
            except (ValueError, TypeError, OverflowError) as error:
                assert str(error)  # noqa: PT017
                continue
            assert not isinstance(ref, list)
            assert skate.get(ref, timeout=60) is None  # it is large, and was understood


NUMPY_DIMENSIONS = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32


@pytest.mark.parametrize(
    "ndim",
    [
        ndim
        for ndim in (0, 1, 27, 28, 29, 30, 31, 32, 33, 63, 64)
        if ndim <= NUMPY_DIMENSIONS
    ],
)
def test_an_array_of_any_number_of_dimensions_is_born_in_the_store(
    session: None, ndim: int
) -> None:
    before = skate.empty((1000,), np.int64)
    before.fill(1)
    array = skate.empty((1,) * ndim, np.int64)
    array.fill(7)
    after = skate.empty((1000,), np.int64)
    after.fill(2)
    for each, value in ((array, 7), (before, 1), (after, 2)):
        ref = skate.put(each)
        got = skate.get(ref)
        assert got.shape == each.shape
        assert (got == value).all()
        assert skate.get(answer.remote(ref)).shape == each.shape


def test_an_array_of_the_store_whose_shape_is_set_later(session: None) -> None:
    for ndim in (2, 29, 32, 64):
        array = skate.empty((4,), np.int64)
        array[:] = range(4)
        try:
            array = array.reshape((4,) + (1,) * (ndim - 1))
        except ValueError:
            continue
        got = skate.get(skate.put(array))
        assert got.shape == array.shape
        assert got.ravel().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "shape",
    [
        (2**40, 2**40), (2**63,), (2**64,), (2**62, 4), (2**32, 2**32), (2**61,),
        (2**62, 2**62, 0), (-1,), (-(2**64),), (1,) * 65,
    ],
)  # fmt: skip
def test_a_shape_whose_bytes_cannot_be_counted_is_refused(
    session: None, shape: tuple[int, ...]
) -> None:
    with pytest.raises((ValueError, MemoryError)):
        skate.empty(shape, np.int64)
    assert skate.get(skate.put(np.arange(3000)))[-1] == 2999


@pytest.mark.parametrize("size", [65_535, 65_536, 70_000, 1 << 20])
def test_a_name_that_fits_no_field_is_refused_or_works(
    session: None, size: int
) -> None:
    name = "k" * size

    def keywords(**named: Any) -> list[int]:
        return [len(key) for key in named]

    task = skate.remote(keywords)
    for call, wanted in (
        (lambda: task.remote(**{name: 1}), [size]),
        (lambda: task.options(name=name).remote(a=1), [1]),
    ):
        try:
            ref = call()
        except ValueError as error:
            assert size > 65_535
            assert str(size) in str(error)  # noqa: PT017
            continue
        assert skate.get(ref, timeout=60) == wanted


@pytest.mark.parametrize(
    ("n", "named"), [(65_535, 0), (65_536, 0), (40_000, 30_000), (0, 65_536)]
)
def test_a_call_takes_its_arguments_all_or_refuses_them(
    session: None, n: int, named: int
) -> None:
    @skate.remote
    def count(*args: Any, **kwargs: Any) -> tuple[int, int, int]:
        return len(args), len(kwargs), sum(args) + sum(kwargs.values())

    ref = skate.put(1)
    for each in (1, ref):
        try:
            called = count.remote(*[each] * n, **{f"k{i}": each for i in range(named)})
        except ValueError as error:
            assert max(n, named) > 65_535
            assert "65535" in str(error)  # noqa: PT017
            continue
        assert skate.get(called, timeout=100) == (n, named, n + named)


def test_a_value_with_very_many_parts(session: None) -> None:
    refs = [skate.put(i) for i in range(70_000)]
    assert len(skate.get(answer.remote([refs]), timeout=60)[0]) == 70_000
    arrays = [np.full(1, i) for i in range(70_000)]
    assert skate.get(skate.put(arrays))[-1][0] == 69_999
