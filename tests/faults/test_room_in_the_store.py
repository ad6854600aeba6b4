"""What a store that is nearly full says and does: waits, reads, rounding."""

from __future__ import annotations

import os
import platform
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from polling import wait_until
from processes import children

import skate
from skate._runtime import statistics
from skate.exceptions import EngineDiedError, ObjectStoreFullError

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

MIB = 1 << 20
STORE = 32 * MIB
START = Callable[..., None]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[START]:
    def start(*, spills: bool = True) -> None:
        monkeypatch.setenv("SKATE_SPILL_DIR", str(tmp_path) if spills else "")
        skate.init("embedded", num_cpus=1, object_store_memory=STORE)

    yield start
    skate.shutdown()


@pytest.mark.parametrize("size", [20 * MIB + 300_000, 29 * MIB, STORE - 50_000])
def test_a_value_of_nearly_the_whole_store_has_room_after_another(
    start: START, size: int
) -> None:
    start()
    first = skate.put(np.ones(size, np.uint8))
    second = skate.put(np.full(size, 2, np.uint8))
    assert statistics()["spilled_bytes"] < size * 1.05
    assert skate.get(first)[-1] == 1
    assert skate.get(second)[-1] == 2


@skate.remote
class Putter:
    def put(self, size: int) -> str:
        try:
            skate.put(np.ones(size, np.uint8))
        except ObjectStoreFullError:
            return "full"
        return "room"


def test_a_call_that_waits_for_room_is_no_hang(
    start: START, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SKATE_HANG_REPORT_S", "0.5")
    start(spills=False)
    putter = Putter.remote()
    assert skate.get(putter.put.remote(1000)) == "room"
    held = skate.put(np.ones(24 * MIB, np.uint8))
    ref = putter.put.remote(16 * MIB)
    assert wait_until(lambda: "waits for room in the object store" in skate.why(ref))
    assert skate.get(ref) == "full"
    assert "nothing runs" not in capfd.readouterr().err
    del held


_RECVMSG = {"x86_64": "47", "aarch64": "212"}.get(platform.machine())


@pytest.mark.skipif(_RECVMSG is None, reason="the number of a system call")
def test_a_get_of_what_is_on_disk_says_that_the_session_has_ended(
    start: START,
) -> None:
    start()
    first = skate.put(np.ones(20 * MIB, np.uint8))
    second = skate.put(np.ones(20 * MIB, np.uint8))
    (supervisor,) = children(os.getpid())
    os.kill(supervisor, signal.SIGSTOP)
    raised: list[BaseException] = []

    def read() -> None:
        try:
            skate.get(first)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    calls = Path(f"/proc/self/task/{thread.native_id}/syscall")
    assert wait_until(lambda: calls.read_text().split()[0] == _RECVMSG)
    os.kill(supervisor, signal.SIGKILL)
    thread.join()
    assert isinstance(raised[0], EngineDiedError)
    del second
