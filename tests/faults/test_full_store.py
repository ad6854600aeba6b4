"""More than the store holds: spilled, waited for, refused; and what can go wrong."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from polling import wait_until
from processes import alive, children, worker_pids
from programs import run

import skate
from skate.exceptions import (
    EngineDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    TaskError,
)

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

MIB = 1 << 20
STORE = 32 * MIB
START = Callable[..., None]


@pytest.fixture
def start(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[START]:
    """Starts a session with a small store, which spills where it is told."""
    folder = tmp_path_factory.mktemp("spill")

    def start(*, limit: int = 1 << 30, directory: str | None = None) -> Path:
        monkeypatch.setenv(
            "SKATE_SPILL_DIR", str(folder) if directory is None else directory
        )
        monkeypatch.setenv("SKATE_SPILL_LIMIT", str(limit))
        skate.init("embedded", num_cpus=2, object_store_memory=STORE)
        return folder

    yield start
    skate.shutdown()


def statistics() -> dict[str, int]:
    from skate import _runtime

    return _runtime.current().statistics()


def array(i: int, size: int = 2 * MIB) -> np.ndarray:
    return np.full((size - 4096) // 8, i)  # what the store adds fits into ``size``


@skate.remote(max_retries=-1)
def make(i: int) -> np.ndarray:
    return array(i)


@skate.remote(max_retries=-1)
def first_and_last(x: np.ndarray) -> tuple[int, int]:
    return int(x[0]), int(x[-1])


@skate.remote(max_retries=-1)
def check(refs: list[skate.ObjectRef[np.ndarray]], seed: int) -> bool:
    order = list(enumerate(refs))
    random.Random(seed).shuffle(order)
    return all((skate.get(ref) == i).all() for i, ref in order)


def test_values_beyond_the_store_are_spilled_and_come_back(start: START) -> None:
    folder = start()
    put = [skate.put(array(i)) for i in range(40)]
    made = [make.remote(i) for i in range(40)]
    assert skate.get([first_and_last.remote(ref) for ref in put]) == [
        (i, i) for i in range(40)
    ]
    for refs in (put, made):
        for i, ref in enumerate(refs):
            np.testing.assert_array_equal(skate.get(ref), array(i))
    now = statistics()
    assert now["spilled_bytes"] > 60 * MIB
    assert now["store_bytes"] <= STORE
    assert list(folder.iterdir()) == []  # the files have no names
    del put, made, refs, ref
    assert wait_until(lambda: statistics()["spilled_bytes"] == 0)
    assert wait_until(lambda: statistics()["store_bytes"] < MIB)


def test_what_was_spilled_comes_back_read_only_and_of_any_kind(start: START) -> None:
    start()
    big = "text" * MIB
    refs = [
        skate.put({"array": array(7), "text": big}),
        skate.put(big),
        skate.put(big.encode()),
        skate.put([array(8), array(9)]),
    ]
    filler = [skate.put(array(i)) for i in range(20)]
    value, text, data, arrays = skate.get(refs)
    assert value["text"] == text == data.decode() == big
    with pytest.raises(ValueError, match="read-only"):
        value["array"][0] = 1
    assert [int(a[-1]) for a in arrays] == [8, 9]
    mine = skate.get(refs[0], copy=True)["array"]
    mine[0] = 1
    del filler


def test_an_array_born_in_the_store_is_spilled_like_any_other(start: START) -> None:
    start()
    refs = []
    for i in range(24):
        born = skate.empty(2 * MIB // 8, np.int64)
        born[:] = i
        refs.append(skate.put(born))
        del born
    assert statistics()["spilled_bytes"] > 0
    assert [int(skate.get(ref)[-1]) for ref in refs] == list(range(24))


def test_live_arrays_stay_as_they_are_while_others_are_spilled(start: START) -> None:
    start()
    live = [skate.get(skate.put(array(i))) for i in range(8)]
    filler = [skate.put(array(100 + i)) for i in range(40)]
    for i, a in enumerate(live):
        assert (a == i).all()
    for i, ref in enumerate(filler):
        assert (skate.get(ref) == 100 + i).all()


@pytest.mark.parametrize("seed", range(2))
def test_many_processes_read_while_blocks_come_and_go(start: START, seed: int) -> None:
    start()
    refs = [skate.put(array(i, MIB)) for i in range(48)]
    checks = [check.remote(refs, seed * 100 + n) for n in range(4)]
    more = [make.remote(i) for i in range(12)]
    assert skate.get(checks, timeout=100) == [True] * 4
    for i, ref in enumerate(more):
        assert (skate.get(ref) == i).all()


def test_spilled_results_outlive_their_worker(start: START) -> None:
    start()
    refs = [make.remote(i) for i in range(40)]
    skate.wait(refs, num_returns=len(refs), timeout=100)
    for pid in worker_pids(os.getpid()):
        os.kill(pid, signal.SIGKILL)
    for i, ref in enumerate(refs):
        assert (skate.get(ref, timeout=100) == i).all()
    del refs, ref
    assert wait_until(lambda: statistics()["spilled_bytes"] == 0)


def test_workers_killed_while_they_spill_lose_nothing(start: START) -> None:
    start()
    dice, pause = random.Random(1), threading.Event()
    for _ in range(5):
        refs = [make.remote(i) for i in range(30)]
        pause.wait(dice.uniform(0.0, 0.2))
        for pid in worker_pids(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        for i, ref in enumerate(refs):
            assert (skate.get(ref, timeout=100) == i).all()


def test_nothing_is_left_on_the_disk(start: START) -> None:
    folder = start()
    refs = [skate.put(array(i)) for i in range(40)]
    (file,) = spill_files(folder)
    assert file.stat().st_blocks * 512 >= 40 * MIB
    del refs
    assert wait_until(lambda: file.stat().st_blocks * 512 < MIB)


def spill_files(folder: Path) -> list[Path]:
    """What the supervisor has open there, as paths that can be opened."""
    (supervisor,) = children(os.getpid())
    links = Path(f"/proc/{supervisor}/fd").iterdir()
    return [link for link in links if os.readlink(link).startswith(str(folder))]


def test_a_value_whose_file_is_damaged_is_lost_by_name(start: START) -> None:
    folder = start()
    refs = [skate.put(array(i)) for i in range(40)]
    (file,) = spill_files(folder)
    os.truncate(file, 0)
    with pytest.raises(ObjectLostError, match="spilled to disk and cannot be read"):
        skate.get(refs)
    with pytest.raises(TaskError, match="spilled to disk") as caught:
        skate.get(first_and_last.remote(refs[0]))
    assert isinstance(caught.value, ObjectLostError)
    assert int(skate.get(refs[-1])[0]) == 39  # it was in memory


# No room --------------------------------------------------------------------------


def fill_with_live_arrays(arrays: list[np.ndarray]) -> None:
    while True:
        arrays.append(skate.get(skate.put(array(len(arrays)))))


def test_a_store_full_of_live_arrays_names_who_holds_it(start: START) -> None:
    start()
    with pytest.raises(ObjectStoreFullError) as caught:
        fill_with_live_arrays([])
    text = str(caught.value)
    assert "cannot store an object of 2.0 MiB" in text
    assert "read by live arrays" in text
    assert "(fill_with_live_arrays) in the driver" in text
    assert __file__ in text
    assert not isinstance(caught.value, OutOfDiskError)


@skate.remote
class Hoarder:
    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def hoard(self, refs: list[skate.ObjectRef[np.ndarray]]) -> None:
        self.arrays += skate.get(refs)

    def let_go(self) -> None:
        self.arrays.clear()


def test_the_results_of_a_task_are_named_by_its_function(start: START) -> None:
    start()
    hoarder = Hoarder.remote()

    def fill() -> None:
        for i in range(STORE // MIB):  # one by one: what nobody views would be spilled
            skate.get(hoarder.hoard.remote([make.remote(i)]))

    with pytest.raises(ObjectStoreFullError, match=r"made by make in a worker, proc"):
        fill()


def test_put_waits_for_others_to_let_go(start: START) -> None:
    start()
    arrays: list[np.ndarray] = []
    with pytest.raises(ObjectStoreFullError):
        fill_with_live_arrays(arrays)
    started = threading.Event()
    done: list[skate.ObjectRef[np.ndarray]] = []

    def put() -> None:
        started.set()
        done.append(skate.put(array(5)))

    thread = threading.Thread(target=put)
    thread.start()
    started.wait()
    arrays.clear()
    thread.join()
    assert (skate.get(done.pop()) == 5).all()


@pytest.mark.parametrize("call", ["put", "empty"])
def test_waiting_for_room_ends_with_the_supervisor(start: START, call: str) -> None:
    start()
    arrays: list[np.ndarray] = []
    with pytest.raises(ObjectStoreFullError):
        fill_with_live_arrays(arrays)
    (supervisor,) = children(os.getpid())
    raised: list[BaseException] = []
    started = threading.Event()

    def wait() -> None:
        started.set()
        try:
            if call == "put":
                skate.put(array(1))
            else:
                skate.empty(2 * MIB, np.uint8)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    started.wait()
    os.kill(supervisor, signal.SIGKILL)
    thread.join()
    assert isinstance(raised[0], EngineDiedError)
    arrays.clear()


def test_an_object_larger_than_the_store_is_refused_at_once(start: START) -> None:
    start()
    with pytest.raises(ObjectStoreFullError, match=r"the whole store has 32\.0 MiB"):
        skate.put(np.zeros(2 * STORE, np.uint8))


def test_without_a_place_nothing_is_spilled(start: START) -> None:
    start(directory="")
    with pytest.raises(ObjectStoreFullError, match="spilling to disk is off") as caught:
        [skate.put(array(i)) for i in range(40)]
    assert not isinstance(caught.value, OutOfDiskError)


def test_the_limit_on_disk_is_kept_and_named(start: START) -> None:
    start(limit=16 * MIB)
    refs: list[skate.ObjectRef[np.ndarray]] = []

    def put_more() -> None:
        while True:
            refs.append(skate.put(array(len(refs))))

    with pytest.raises(OutOfDiskError, match=r"16\.0 MiB \(SKATE_SPILL_LIMIT\)"):
        put_more()
    assert statistics()["spilled_bytes"] <= 16 * MIB
    assert len(refs) >= 20
    for i, ref in enumerate(refs):  # nothing was lost
        assert (skate.get(ref) == i).all()
    del refs[:8], ref
    gc.collect()
    assert (skate.get(skate.put(array(3))) == 3).all()  # and it goes on


# In a container -------------------------------------------------------------------


def in_mount_namespace(mount: str, program: str) -> str:
    """What ``program`` prints where ``mount`` was done, if this system allows it."""
    prepared = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount], capture_output=True, check=False
    )
    if prepared.returncode != 0:
        pytest.skip("this system lets nobody make a mount namespace")
    run = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", *run],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_any_temporary_directory_nothing_is_spilled() -> None:
    program = """
        import os, tempfile
        import numpy as np
        import skate

        for name in ("TMPDIR", "TEMP", "TMP", "SKATE_SPILL_DIR"):
            os.environ.pop(name, None)
        try:
            tempfile.gettempdir()
        except FileNotFoundError:
            pass
        else:
            raise AssertionError(tempfile.gettempdir())
        with skate.init("embedded", num_cpus=1, object_store_memory=16 << 20):
            kept = skate.put(np.zeros(10 << 20, np.uint8))
            try:
                skate.put(np.zeros(10 << 20, np.uint8))
            except skate.exceptions.ObjectStoreFullError as error:
                print("spilling to disk is off" in str(error))
        """
    mounts = [
        f"mount --bind {path} {path} && mount -o remount,ro,bind {path}"
        for path in ("/tmp", "/var/tmp")
    ]
    # The current directory would do, too; nobody can write in this one.
    assert in_mount_namespace(" && ".join([*mounts, "cd /proc"]), program) == "True\n"


def test_a_small_dev_shm_does_not_matter() -> None:
    program = """
        import os
        import numpy as np
        import skate

        status = os.statvfs("/dev/shm")
        assert status.f_blocks * status.f_frsize <= 1 << 20
        skate.init("embedded", num_cpus=1, object_store_memory=256 << 20)

        @skate.remote
        def double(x):
            return 2 * x

        refs = [double.remote(np.full(4 << 20, i)) for i in range(4)]
        print([int(skate.get(ref)[-1]) for ref in refs])
    """
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    assert in_mount_namespace(mount, program) == "[0, 2, 4, 6]\n"


def test_a_disk_that_fills_up_while_spilling_is_survived(tmp_path: Path) -> None:
    program = f"""
        import os
        os.environ["SKATE_SPILL_DIR"] = {str(tmp_path)!r}
        os.environ["SKATE_SPILL_LIMIT"] = str(1 << 40)
        import numpy as np
        import skate

        skate.init("embedded", num_cpus=1, object_store_memory=32 << 20)
        refs = []
        try:
            for i in range(100):
                refs.append(skate.put(np.full((1 << 18) - 512, i)))
        except skate.exceptions.OutOfDiskError as error:
            print("No space left on device" in str(error), len(refs) >= 20)
        print(all((skate.get(ref) == i).all() for i, ref in enumerate(refs)))
        del refs[:8]
        print(int(skate.get(skate.put(np.full(1 << 18, 7)))[-1]))
    """
    mount = f"mount -t tmpfs -o size=16m tmpfs {tmp_path}"
    assert in_mount_namespace(mount, program) == "True True\nTrue\n7\n"


def test_nothing_is_left_when_the_driver_is_killed(tmp_path: Path) -> None:
    program = """
        import numpy as np, time
        import skate
        skate.init("embedded", num_cpus=1, object_store_memory=32 << 20)
        refs = [skate.put(np.full(1 << 18, i)) for i in range(30)]
        print("ready", flush=True)
        time.sleep(100)
    """
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "SKATE_SPILL_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == b"ready\n"
    (supervisor,) = children(driver.pid)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    assert wait_until(lambda: not alive(supervisor))
    assert list(tmp_path.iterdir()) == []


def test_a_function_is_called_while_the_store_is_full_of_what_could_leave(
    start: START,
) -> None:
    start()
    refs = [skate.put(np.full(MIB // 8, i, np.int64)) for i in range(60)]
    large = np.full(MIB // 2, 3, np.int64)  # its code is larger than what is free

    @skate.remote
    def first(x: int) -> int:
        return int(large[0]) + x

    assert skate.get(first.remote(1)) == 4
    assert int(skate.get(refs[0])[0]) == 0


def test_what_is_too_large_for_the_disk_keeps_nothing_smaller_from_it(
    tmp_path: Path,
) -> None:
    """The oldest values do not fit under the limit any more; younger ones do."""
    run(
        """
        import numpy as np, skate

        MIB = 1 << 20
        with skate.init("embedded", num_cpus=1, object_store_memory=200 * MIB):
            large = [skate.put(np.ones(12 * MIB, np.uint8)) for _ in range(14)]
            small = [skate.put(np.full(200 << 10, i, np.uint8)) for i in range(50)]
            more = [skate.put(np.ones(1 * MIB, np.uint8)) for _ in range(2)]
            for i, ref in enumerate(small):
                assert (skate.get(ref) == i).all()
            assert skate.get(large[0]).sum() == 12 * MIB
        """,
        SKATE_SPILL_DIR=str(tmp_path),
        SKATE_SPILL_LIMIT=str(11 << 20),
    )
