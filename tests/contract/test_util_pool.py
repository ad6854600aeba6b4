from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal as signals
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import Signal

import skate
from skate.exceptions import ActorDiedError, ResourceError
from skate.util.multiprocessing import AsyncResult, Pool


@pytest.fixture
def pool(engine: str) -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


def square(x: int) -> int:
    return x * x


def fail_at_3(x: int) -> int:
    if x == 3:
        raise ValueError(f"no {x}")
    return x


def test_apply_runs_a_function_in_a_worker(pool: Pool) -> None:
    assert pool.apply(divmod, (7, 2)) == (3, 1)
    assert pool.apply(int, ("ff",), {"base": 16}) == 255
    assert pool.apply(lambda: "a lambda") == "a lambda"


@pytest.mark.parametrize("chunksize", [None, 1, 7, 100])
def test_map_keeps_the_order_whatever_the_chunks(
    pool: Pool, chunksize: int | None
) -> None:
    assert pool.map(square, range(50), chunksize) == [x * x for x in range(50)]
    assert pool.map_async(square, iter(range(5)), chunksize).get(60) == [0, 1, 4, 9, 16]


def test_an_empty_map_is_an_empty_list(pool: Pool) -> None:
    assert pool.map(square, []) == []
    results: list[Any] = []
    result = pool.map_async(square, [], callback=results.append)
    assert result.ready()
    assert result.get() == []
    assert results == [[]]
    assert list(pool.imap(square, [])) == []


def test_starmap_spreads_the_arguments(pool: Pool) -> None:
    assert pool.starmap(pow, [(2, 3), (3, 2)]) == [8, 9]
    assert pool.starmap_async(pow, zip([2, 3], [5, 4], strict=True)).get() == [32, 81]


def test_imap_gives_results_in_order(pool: Pool) -> None:
    assert list(pool.imap(square, range(20))) == [x * x for x in range(20)]
    assert list(pool.imap(square, range(20), chunksize=3)) == [x * x for x in range(20)]


def test_imap_unordered_gives_all_results(pool: Pool) -> None:
    for chunksize in (1, 4):
        results = pool.imap_unordered(square, range(20), chunksize)
        assert sorted(results) == [x * x for x in range(20)]


def test_imap_reads_an_endless_iterable(pool: Pool) -> None:
    results = pool.imap(square, itertools.count())
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]


def test_imap_goes_on_after_an_error(pool: Pool) -> None:
    results = pool.imap(fail_at_3, range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no 3"):
        next(results)
    assert list(results) == [4, 5]


@pytest.fixture
def blocked(pool: Pool) -> Any:
    """A call that waits, and what lets it go on."""
    signal = Signal.remote()

    def wait(signal: Any) -> str:
        skate.get(signal.wait.remote())
        return "done"

    return pool.apply_async(wait, (signal,)), signal


def test_get_and_next_may_time_out(pool: Pool, blocked: Any) -> None:
    result, signal = blocked
    with pytest.raises(multiprocessing.TimeoutError, match=r"0\.01 s"):
        result.get(timeout=0.01)
    result.wait(timeout=0.01)
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    results = pool.imap(lambda s: skate.get(s.wait.remote()), [signal])
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(timeout=0.01)
    signal.set.remote()
    assert result.get(timeout=60) == "done"
    assert result.successful()
    assert results.next(timeout=60) is True
    with pytest.raises(StopIteration):
        results.next()


def test_an_idle_worker_takes_what_a_busy_one_cannot(pool: Pool, blocked: Any) -> None:
    result, signal = blocked
    assert pool.map(square, range(20), 1) == [x * x for x in range(20)]
    signal.set.remote()
    assert result.get() == "done"


def test_an_error_is_raised_as_it_was(pool: Pool) -> None:
    result = pool.map_async(fail_at_3, range(6))
    with pytest.raises(ValueError, match="no 3"):
        result.get()
    assert result.ready()
    assert not result.successful()
    with pytest.raises(ZeroDivisionError):
        pool.apply(lambda: 1 / 0)
    with pytest.raises(ValueError, match="no 3"):
        pool.starmap(fail_at_3, [(1,), (3,)])


def test_callbacks_run_before_get_returns(pool: Pool) -> None:
    seen: list[Any] = []
    pool.apply_async(square, (3,), callback=seen.append).get()
    pool.map_async(square, [1, 2], 1, callback=seen.append).get()
    assert seen == [9, [1, 4]]
    errors: list[BaseException] = []
    result = pool.apply_async(
        fail_at_3, (3,), callback=seen.append, error_callback=errors.append
    )
    result.wait()
    assert [type(error) for error in errors] == [type(errors[0])]
    assert isinstance(errors[0], ValueError)
    assert len(seen) == 2


def test_callbacks_run_although_nobody_asks(pool: Pool) -> None:
    called = threading.Event()
    for _ in range(5):
        result = pool.apply_async(square, (2,), callback=lambda _: called.set())
    assert called.wait(60)
    assert result.get() == 4


def test_work_that_waits_for_a_worker_goes_on_although_nobody_asks(pool: Pool) -> None:
    signal = Signal.remote()
    result = pool.map_async(lambda _: skate.get(signal.set.remote()), range(20), 1)
    assert skate.get(signal.wait.remote()) is True
    assert len(result.get()) == 20


class _AlarmError(Exception):
    pass


@pytest.mark.parametrize("engine_name", ["embedded"])  # others run in this process
def test_a_handler_that_raises_loses_no_task_and_no_worker(pool: Pool) -> None:
    def ring(number: int, frame: object) -> None:
        raise _AlarmError

    before = signals.signal(signals.SIGALRM, ring)
    pool.map(square, range(4))
    try:
        for attempt in range(60):
            result = pool.map_async(square, range(12), 1)
            try:
                signals.setitimer(signals.ITIMER_REAL, 0.0002 * (1 + attempt % 12))
                result.get(timeout=60)
                signals.setitimer(signals.ITIMER_REAL, 0)
            except _AlarmError:
                pass
            assert result.get(timeout=60) == [x * x for x in range(12)]
    finally:
        signals.setitimer(signals.ITIMER_REAL, 0)
        signals.signal(signals.SIGALRM, before)


def test_a_callback_that_raises_is_logged(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(value: Any) -> None:
        raise ValueError("mine")

    with caplog.at_level(logging.ERROR):
        assert pool.apply_async(square, (3,), callback=fail).get(timeout=60) == 9
        assert pool.map_async(square, [], callback=fail).get(timeout=60) == []
    assert caplog.text.count("mine") >= 2
    caplog.clear()  # the records hold frames, and those hold refs


def test_an_error_of_the_iterable_comes_after_the_results_before_it(pool: Pool) -> None:
    def items() -> Iterator[int]:
        yield from range(10)
        raise ValueError("mine")

    results = pool.imap(square, items())
    assert [results.next(timeout=60) for _ in range(10)] == [x * x for x in range(10)]
    with pytest.raises(ValueError, match="mine"):
        results.next(timeout=60)
    with pytest.raises(StopIteration):
        results.next(timeout=60)


def test_imap_unordered_may_be_read_while_chunks_end(pool: Pool) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(5):
            got = sorted(pool.imap_unordered(square, range(200)))
            assert got == [x * x for x in range(200)]
    finally:
        sys.setswitchinterval(before)


_setting: Any = None


def set_up(value: int) -> None:
    global _setting
    _setting = value


def read_setting(_: Any = None) -> Any:
    return _setting


@pytest.mark.usefixtures("engine")
def test_an_initializer_runs_once_in_each_worker() -> None:
    with Pool(2, initializer=set_up, initargs=(5,)) as pool:
        assert pool.map(read_setting, range(4), 1) == [5] * 4
        assert pool.apply(read_setting) == 5
    set_up(0)


SCRIPT = """
from skate.util.multiprocessing import AsyncResult, Pool

factor = 1

def set_up(value):
    global factor
    factor = value

def scale(x):
    return x * factor

with Pool(2, initializer=set_up, initargs=(10,)) as pool:
    print(pool.map(scale, [1, 2, 3]), pool.apply(scale, (4,)))
"""


def test_an_initializer_of_a_script_sets_its_globals(engine_name: str) -> None:
    environment = {**os.environ, "SKATE_ENGINE": engine_name}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "[10, 20, 30] 40\n"


@pytest.mark.usefixtures("engine")
def test_a_failing_initializer_fails_the_calls() -> None:
    def broken() -> None:
        raise OSError("no licence")

    with Pool(1, initializer=broken) as pool:
        with pytest.raises(ActorDiedError, match="no licence"):
            pool.apply(square, (1,))
        with pytest.raises(ActorDiedError, match="no licence"):
            pool.apply(square, (1,))


def worker_id(_: Any = None) -> str:
    found = skate.get_runtime_context().get_actor_id()
    assert found is not None
    return found


@pytest.mark.usefixtures("engine")
def test_a_worker_is_replaced_after_as_many_tasks_as_it_may_do() -> None:
    with Pool(1, maxtasksperchild=2) as pool:
        workers = pool.map(worker_id, range(6), 1)
        assert workers[0] == workers[1] != workers[2] == workers[3]
        assert workers[3] != workers[4] == workers[5]
    with Pool(1) as pool:
        assert len(set(pool.map(worker_id, range(6), 1))) == 1


def die_at_3(x: int) -> int:
    if x == 3:
        os._exit(1)
    return x


@pytest.mark.parametrize("engine_name", ["embedded"])
@pytest.mark.usefixtures("engine")
def test_a_worker_that_dies_fails_its_call_and_is_replaced() -> None:
    with Pool(1) as pool:
        with pytest.raises(ActorDiedError):
            pool.apply(die_at_3, (3,))
        assert pool.map(die_at_3, [1, 2]) == [1, 2]
        results = pool.imap(die_at_3, [2, 3, 4])
        assert next(results) == 2
        with pytest.raises(ActorDiedError):
            next(results)
        assert next(results) == 4


@pytest.mark.parametrize("engine_name", ["embedded"])  # it alone has a limit
def test_a_worker_that_there_is_no_place_for_is_made_once_there_is(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKATE_MAX_PROCESSES", "12")
    start(num_cpus=2)
    with Pool(1, maxtasksperchild=1) as pool:
        others = []
        with contextlib.suppress(ResourceError):
            for _ in range(20):
                others.append(Signal.remote())
                skate.get(others[-1].set.remote())
        assert len(others) < 20
        result = pool.map_async(square, range(4), 1)
        assert result.get(timeout=60) == [0, 1, 4, 9]


@pytest.mark.usefixtures("engine")
def test_close_finishes_what_was_given_and_takes_no_more() -> None:
    pool = Pool(2)
    result = pool.map_async(square, range(10), 1)
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    pool.close()
    for call in (
        lambda: pool.apply_async(square, (1,)),
        lambda: pool.map(square, [1]),
        lambda: pool.imap(square, [1]),
        lambda: pool.__enter__(),
    ):
        with pytest.raises(ValueError, match="closed"):
            call()
    pool.join()
    assert result.ready()
    assert result.get() == [x * x for x in range(10)]


@pytest.mark.usefixtures("engine")
def test_terminate_fails_what_has_not_ended() -> None:
    signal = Signal.remote()
    pool = Pool(1)
    running = pool.apply_async(lambda s: skate.get(s.wait.remote()), (signal,))
    waiting = pool.apply_async(square, (1,))
    skate.get(signal.wait_for_waiting.remote(1))
    pool.terminate()
    pool.join()
    for result in (running, waiting):
        with pytest.raises(ActorDiedError):
            result.get(timeout=60)
    with pytest.raises(ValueError, match="closed"):
        pool.apply(square, (1,))


@pytest.mark.usefixtures("engine")
def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="processes"):
        Pool(0)
    with pytest.raises(ValueError, match="maxtasksperchild"):
        Pool(1, maxtasksperchild=0)
    with pytest.raises(TypeError, match="initializer"):
        Pool(1, initializer=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ray_address"):
        Pool(1, ray_address="auto")
    with Pool(1) as pool:
        with pytest.raises(ValueError, match="chunksize"):
            pool.map(square, [1], chunksize=-1)
        with pytest.raises(TypeError, match="pickle"):
            pool.map(lambda x: lock, [1])
        with pytest.raises(TypeError, match="pickle"):
            pool.apply(square, (threading.Lock(),))
        assert pool.apply(square, (2,)) == 4


lock = threading.Lock()


@pytest.mark.usefixtures("engine")
def test_the_workers_take_options_of_actors() -> None:
    with Pool(1, ray_remote_args={"num_cpus": 1}) as pool:
        pool.apply(square, (1,))
        assert skate.available_resources()["CPU"] == 1


@skate.remote
def pool_in_a_task() -> list[int]:
    with Pool(2) as pool:
        return pool.map(square, range(5), 1)


@pytest.mark.usefixtures("engine")
def test_a_task_may_have_a_pool() -> None:
    assert skate.get(pool_in_a_task.remote()) == [0, 1, 4, 9, 16]


def one() -> int:
    return 1


@pytest.mark.usefixtures("engine")
def test_an_error_callback_may_hand_out_more() -> None:
    again: list[AsyncResult] = []
    with Pool(1) as pool:
        pool.apply_async(
            one,
            (threading.Lock(),),  # cannot be pickled
            error_callback=lambda _: again.append(pool.apply_async(one)),
        )
        behind = [pool.apply_async(one) for _ in range(3)]
        assert [call.get(timeout=60) for call in [*behind, *again]] == [1] * 4
