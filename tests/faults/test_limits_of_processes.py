"""Limits met on the way: of processes, of descriptors, of what a socket takes."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from polling import wait_until
from processes import alive, children, zygote_and_workers
from programs import run
from workload import Counter, echo

import skate
from skate.collective import GroupSpec
from skate.exceptions import EngineDiedError, EngineError, ResourceError
from skate.util import placement_group, placement_group_table, remove_placement_group

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")


@pytest.fixture
def session() -> Iterator[None]:
    with skate.init(
        "embedded", num_cpus=2, resources={"robot": 1e6}, object_store_memory=256 << 20
    ):
        yield


@pytest.fixture
def few_places(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("SKATE_MAX_PROCESSES", "32")
    return 32


def supervisor() -> int:
    (pid,) = children(os.getpid())
    return pid


def open_files(pid: int, name: str) -> int:
    found = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found += os.readlink(f"/proc/{pid}/fd/{fd}").startswith(name)
        except OSError:
            continue
    return found


def fill(actors: list[skate.ActorHandle[Counter]], places: int) -> None:
    for _ in range(places):
        actors.append(Counter.options(num_cpus=0).remote())  # noqa: PERF401 - may raise


# Places -------------------------------------------------------------------------------


@skate.remote(num_cpus=0, num_gpus=1)
def with_gpu(number: int) -> np.ndarray:
    return np.full(1000, number)


def test_more_processes_come_and_go_than_there_are_places(few_places: int) -> None:
    """A worker that had a GPU ends with its task; its result is held."""
    with skate.init("embedded", num_cpus=1, num_gpus=1):
        held = [with_gpu.remote(number) for number in range(5 * few_places)]
        for number, value in enumerate(skate.get(held, timeout=100)):
            assert value[0] == number


def test_an_actor_that_waits_for_resources_keeps_no_places(few_places: int) -> None:
    with skate.init("embedded", num_cpus=1, num_gpus=1, resources={"robot": 1}):
        first = Counter.options(resources={"robot": 1}).remote()
        skate.get(first.add.remote())
        second = Counter.options(resources={"robot": 1}).remote()
        waits = second.add.remote()
        for number in range(3 * few_places):
            assert skate.get(with_gpu.remote(number), timeout=60)[0] == number
        del first
        assert skate.get(waits, timeout=60) == 1


def test_at_the_limit_creating_an_actor_says_so_and_later_works(
    few_places: int,
) -> None:
    with skate.init("embedded", num_cpus=1):
        actors: list[skate.ActorHandle[Counter]] = []
        with pytest.raises(ResourceError, match=r"at most \d+ workers, actors"):
            fill(actors, few_places)
        assert len(actors) > few_places // 2
        assert skate.get([actor.add.remote() for actor in actors]) == [1] * len(actors)
        assert skate.get(echo.remote(1), timeout=60)[0] == 1  # the pool has its own
        actors.clear()

        def works() -> bool:
            try:
                actor = Counter.options(num_cpus=0).remote()
            except ResourceError:
                return False
            return skate.get(actor.add.remote(), timeout=60) == 1

        assert wait_until(works)


def test_idle_workers_keep_no_actor_out(few_places: int) -> None:
    with skate.init("embedded", num_cpus=1, resources={"robot": 1e6}):
        leased = echo.options(num_cpus=0, resources={"robot": 1})
        skate.get([leased.remote(i) for i in range(few_places)])
        actors: list[skate.ActorHandle[Counter]] = []
        fill(actors, few_places - 8)  # all but those of the pool and restarts
        assert skate.get([actor.add.remote() for actor in actors]) == [1] * len(actors)


def test_a_task_that_can_get_no_process_fails_and_says_why(few_places: int) -> None:
    with skate.init("embedded", num_cpus=1, resources={"robot": 1e6}):
        actors: list[skate.ActorHandle[Counter]] = []
        with pytest.raises(ResourceError):
            fill(actors, few_places)
        refused = echo.options(num_cpus=0, resources={"robot": 1}).remote(1)
        with pytest.raises(ResourceError, match="at most"):
            skate.get(refused, timeout=60)


def test_tasks_beyond_the_limit_wait_for_those_that_run(few_places: int) -> None:
    with skate.init("embedded", num_cpus=1, resources={"robot": 1e6}):
        task = echo.options(num_cpus=0, resources={"robot": 1})
        refs = [task.remote(number) for number in range(10 * few_places)]
        values = skate.get(refs, timeout=100)
        assert [number for number, _ in values] == list(range(10 * few_places))


# The machine gives no process ---------------------------------------------------------

REFUSE_FORKS = """
import os
from skate import _core
if open("/proc/self/comm").read().strip() == "skate-zygote":
    fork = _core.fork_orphan
    _core.fork_orphan = lambda: -1 if os.path.exists({flag!r}) else fork()
"""


@pytest.fixture
def no_forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this file exists, no worker can be forked."""
    flag = tmp_path / "no forks"
    (tmp_path / "refuse_forks.py").write_text(REFUSE_FORKS.format(flag=str(flag)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SKATE_PRELOAD", "refuse_forks")
    return flag


def test_forks_that_fail_for_a_moment_cost_nothing(no_forks: Path) -> None:
    with skate.init("embedded", num_cpus=2, resources={"robot": 4}):
        assert skate.get(echo.remote(0), timeout=60)[0] == 0
        no_forks.touch()
        actor = Counter.options(num_cpus=0).remote()
        refs = [echo.options(resources={"robot": 1}).remote(n) for n in range(4)]
        call = actor.add.remote()
        assert skate.wait([call, *refs], timeout=0.3)[0] == []
        no_forks.unlink()
        assert skate.get(call, timeout=60) == 1
        assert [n for n, _ in skate.get(refs, timeout=60)] == list(range(4))


def test_work_that_no_process_can_be_forked_for_fails_and_says_why(
    no_forks: Path,
) -> None:
    with skate.init("embedded", num_cpus=2, resources={"robot": 4}):
        assert skate.get(echo.remote(0), timeout=60)[0] == 0
        no_forks.touch()
        actor = Counter.options(num_cpus=0).remote()
        task = echo.options(resources={"robot": 1}).remote(1)
        with pytest.raises(ResourceError, match="no further process"):
            skate.get(task, timeout=60)
        with pytest.raises(ResourceError, match="no further process"):
            skate.get(actor.add.remote(), timeout=60)
        assert skate.get(echo.remote(2), timeout=60)[0] == 2  # the worker that is there
        no_forks.unlink()

        def works() -> bool:
            try:
                return skate.get(Counter.remote().add.remote(), timeout=60) == 1
            except ResourceError:
                return False

        assert wait_until(works)


def test_tasks_without_any_worker_end_with_the_reason(
    no_forks: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    no_forks.touch()
    with (
        skate.init("embedded", num_cpus=1),
        pytest.raises(EngineDiedError, match="no further process"),
    ):
        skate.get(echo.remote(1), timeout=60)
    assert capfd.readouterr().err.count("no further worker can be started") == 1


# Descriptors --------------------------------------------------------------------------

TREE = """
    import skate

    @skate.remote
    def tree(depth):
        children = [tree.remote(depth - 1) for _ in range(2 if depth else 0)]
        return sum(skate.get(children)) if children else 1

    def main():
        with skate.init("embedded", num_cpus=2, object_store_memory=256 << 20):
            roots = [tree.remote(6) for _ in range(7)]
            assert skate.get(roots, timeout=60) == [64] * 7
        print("survived")

    main()
"""


def test_trees_of_tasks_end_where_descriptors_are_few() -> None:
    assert "survived" in run(TREE, descriptors=160)


FEW_FILES = """
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))
    import numpy as np
    import skate
    from skate.exceptions import ResourceError

    @skate.remote(num_cpus=0)
    class Holder:
        def make(self):
            return np.zeros(100_000)

    def main():
        with skate.init("embedded", num_cpus=1, object_store_memory=256 << 20):
            for _ in range(3):
                actors = []
                try:
                    while True:
                        actors.append(Holder.remote())
                except ResourceError as error:
                    assert "RLIMIT_NOFILE" in str(error), error
                assert len(actors) > 10
                for actor in actors:
                    assert skate.get(actor.make.remote(), timeout=60).sum() == 0
                del actor
                actors.clear()
                for _ in range(200):
                    try:
                        actor = Holder.remote()
                        break
                    except ResourceError:
                        skate.wait([skate.put(0)], timeout=0.05)
                assert skate.get(actor.make.remote(), timeout=60).size == 100_000
                del actor
        print("survived")

    main()
"""


def test_a_session_survives_running_out_of_descriptors() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FEW_FILES)],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert "survived" in done.stdout, done.stderr[-4000:]


FUTURES = """
    import os
    import skate
    from skate.exceptions import ResourceError

    @skate.remote(num_cpus=0)
    class Signal:
        def __init__(self):
            import asyncio
            self.event = asyncio.Event()
        async def wait(self):
            await self.event.wait()
            return 7
        async def set(self):
            self.event.set()

    @skate.remote(num_cpus=0)
    class Starter:
        def start(self, refs):
            if refs:
                self.started = read.remote(refs)

    @skate.remote(num_cpus=0.5)
    def read(refs):
        return len(skate.get(refs[0]))

    def falls_short():
        try:
            skate.wait([ref], timeout=0.05)
        except ResourceError:
            return True
        return False

    with skate.init("embedded", num_cpus=2):
        signal, starter = Signal.remote(), Starter.remote()
        ref = signal.wait.remote()
        future = ref.future()
        large = skate.put(b"x" * 100_000)
        skate.get(starter.start.remote([]))
        held = []
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            pass
        # A process that the driver has not met yet asks it for a value.
        asked = starter.start.remote([large])
        short = 0
        while short < 20:
            short += falls_short()
        for fd in held:
            os.close(fd)
        signal.set.remote()
        assert future.result(timeout=20) == 7
"""


def test_futures_wait_through_a_moment_without_descriptors() -> None:
    run(FUTURES, descriptors=256, seconds=60)


# Messages -----------------------------------------------------------------------------

LONG = "x" * 250_000


def test_a_task_and_an_actor_of_a_large_environment_run(session: None) -> None:
    env = {"env_vars": {"LONG": LONG[:100_000], "LONG2": LONG[:120_000]}}

    @skate.remote(runtime_env=env)
    def length() -> int:
        return len(os.environ["LONG"]) + len(os.environ["LONG2"])

    assert skate.get(length.remote(), timeout=60) == 220_000
    actor = Counter.options(runtime_env=env).remote()
    assert skate.get(actor.add.remote(), timeout=60) == 1


def test_a_constructors_long_error_arrives(session: None) -> None:
    @skate.remote(max_restarts=-1)
    class Fails:
        def __init__(self) -> None:
            raise ValueError(LONG + "the end")

        def call(self) -> None: ...

    with pytest.raises(skate.exceptions.ActorDiedError, match="the end"):
        skate.get(Fails.remote().call.remote(), timeout=60)


def test_any_number_of_placement_groups_come_and_go(session: None) -> None:
    first = placement_group([{"robot": 1}], name="kept")
    for _ in range(3000):
        group = placement_group([{"robot": 1}])
        remove_placement_group(group)
    assert placement_group_table(group)["state"] == "REMOVED"
    assert placement_group_table(first)["state"] == "CREATED"
    assert len(placement_group_table()) < 3000


def test_a_task_of_a_group_that_was_removed_long_ago_is_told(session: None) -> None:
    from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    old = placement_group([{"robot": 1}])
    remove_placement_group(old)
    for _ in range(1100):
        remove_placement_group(placement_group([{"robot": 1}]))
    where = PlacementGroupSchedulingStrategy(old)
    late = echo.options(scheduling_strategy=where, num_cpus=0).remote(1)
    with pytest.raises(skate.exceptions.TaskPlacementGroupRemoved):
        skate.get(late, timeout=60)
    assert placement_group_table(old)["state"] == "REMOVED"


def test_why_answers_however_many_wait(session: None) -> None:
    refs = [
        echo.options(num_cpus=0, resources={"robot": 1e6}).remote(n) for n in range(3)
    ]
    blocked = Counter.options(resources={"robot": 1e6}).remote()
    many = [echo.options(resources={"robot": 1e6}).remote(n) for n in range(9000)]
    assert "queued" in skate.why(many[-1]) or "before it" in skate.why(many[-1])
    assert [n for n, _ in skate.get(refs, timeout=60)] == [0, 1, 2]
    for ref in many:
        skate.cancel(ref)
    del blocked


def test_a_message_that_makes_no_sense_costs_nobody_else(session: None) -> None:
    from skate._runtime import current

    engine = current()
    with pytest.raises(EngineError, match="could not answer"):
        engine.ask("no such question")  # type: ignore[attr-defined]
    engine.node.tell(b"not a pickle")  # type: ignore[attr-defined]
    engine.node.tell(pickle.dumps(("leave_group", "nobody's")))  # type: ignore[attr-defined]
    assert skate.get(echo.remote(1), timeout=60)[0] == 1


# Nobody waits -------------------------------------------------------------------------


def test_a_stopped_zygote_stops_nobody_else(session: None) -> None:
    assert skate.get(echo.remote(0), timeout=60)[0] == 0
    (zygote,), _ = zygote_and_workers(os.getpid())
    os.kill(zygote, signal.SIGSTOP)
    try:
        actors = [Counter.options(num_cpus=0).remote() for _ in range(60)]
        assert skate.available_resources()["robot"] == 1e6  # the supervisor answers
        assert skate.get(echo.remote(1), timeout=60)[0] == 1
    finally:
        os.kill(zygote, signal.SIGCONT)
    assert skate.get([a.add.remote() for a in actors], timeout=100) == [1] * 60


def test_a_stopped_supervisor_stops_no_submitter(session: None) -> None:
    assert skate.get(echo.remote(0), timeout=60)[0] == 0
    pid = supervisor()
    task = echo.options(num_cpus=0.5)
    refs: list[skate.ObjectRef[tuple[int, int]]] = []
    submits = threading.Thread(
        target=lambda: refs.extend(task.remote(n) for n in range(3000))
    )
    os.kill(pid, signal.SIGSTOP)
    try:
        submits.start()
        submits.join(timeout=60)
        assert not submits.is_alive()
        assert skate.get(echo.remote(1), timeout=60)[0] == 1
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [n for n, _ in skate.get(refs, timeout=100)] == list(range(3000))


def test_a_lease_costs_the_same_however_many_wait(session: None) -> None:
    task = echo.options(num_cpus=0.5)

    def seconds_for_each(count: int) -> float:
        start = time.perf_counter()
        skate.get([task.remote(n) for n in range(count)], timeout=100)
        return (time.perf_counter() - start) / count

    seconds_for_each(50)
    few = min(seconds_for_each(250) for _ in range(3))
    assert seconds_for_each(4000) < 3 * few  # quadratic: 16 times


# Groups -------------------------------------------------------------------------------


@skate.remote
class Rank:
    def join(self, rank: int, size: int, name: str = "g") -> int:
        self.group = GroupSpec(name, size).join(rank, timeout=60)
        return os.getpid()

    def close(self) -> None:
        self.group.close()


def test_the_memory_of_killed_ranks_goes_and_their_names_are_free(
    session: None,
) -> None:
    pid = supervisor()
    for _ in range(3):
        ranks = [Rank.options(num_cpus=0).remote() for _ in range(2)]
        joined = [rank.join.remote(i, 2) for i, rank in enumerate(ranks)]
        skate.get(joined, timeout=60)
        # An answer that waits to be read has a descriptor of its own.
        assert wait_until(lambda: open_files(pid, "/memfd:skate-group") == 1)
        for rank in ranks:
            skate.kill(rank)
        assert wait_until(lambda: open_files(pid, "/memfd:skate-group") == 0)


def test_the_memory_goes_when_some_ranks_were_killed_and_the_others_left(
    session: None,
) -> None:
    pid = supervisor()
    ranks = [Rank.options(num_cpus=0).remote() for _ in range(2)]
    skate.get([rank.join.remote(i, 2) for i, rank in enumerate(ranks)], timeout=60)
    skate.kill(ranks[0])
    skate.get(ranks[1].close.remote(), timeout=60)
    assert wait_until(lambda: open_files(pid, "/memfd:skate-group") == 0)


# Forks --------------------------------------------------------------------------------


def test_shutdown_in_a_forked_child_ends_nothing(session: None) -> None:
    actor = Counter.remote()
    assert skate.get(actor.add.remote(), timeout=60) == 1
    pid = supervisor()
    child = os.fork()
    if child == 0:
        try:
            skate.shutdown()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert alive(pid)
    assert skate.get(actor.add.remote(), timeout=60) == 2
    assert skate.get(echo.remote(3), timeout=60)[0] == 3
