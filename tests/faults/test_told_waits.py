"""What a process tells of its waits: for what, since when, and that they have ended."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import skate
from skate.exceptions import GetTimeoutError
from skate.util import state

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

NOTHING_RUNS = "skate: the driver waits, and nothing runs that could end it"


@pytest.fixture(autouse=True)
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SKATE_HANG_REPORT_S", "0.2")
    skate.init("embedded", num_cpus=2)
    yield
    skate.shutdown()


@skate.remote
def sleep(seconds: float) -> None:
    threading.Event().wait(seconds)


@skate.remote
class Holder:
    def __init__(self) -> None:
        self._refs: list[skate.ObjectRef[None]] = []

    def start(self) -> list[skate.ObjectRef[None]]:
        self._refs.append(sleep.remote(20))
        return self._refs


def test_a_look_at_anothers_ref_is_no_part_of_the_next_get(tmp_path: Path) -> None:
    holder = Holder.remote()
    (ref,) = skate.get(holder.start.remote())
    ready = skate.put(1)
    assert "sleep" in skate.why(ref)  # its owner is asked
    threading.Event().wait(1)
    before = time.monotonic()
    skate.get(ready)
    took = time.monotonic() - before
    path = tmp_path / "trace.json"
    skate.timeline(path)
    events = json.loads(path.read_text())["traceEvents"]
    gets = [e for e in events if e["ph"] == "X" and e["name"].startswith("get")]
    last = max(gets, key=lambda event: float(event["ts"]) + float(event["dur"]))
    assert last["dur"] * 1e-6 <= took + 0.5
    skate.cancel(ref, force=True)


@skate.remote(num_returns="streaming", _generator_backpressure_num_objects=1)
def numbers() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


@skate.remote
def read_numbers(seconds: float) -> int:
    end = time.monotonic() + seconds
    count = 0
    for _ in numbers.remote():
        count += 1
        if time.monotonic() > end:
            break
    return count


def test_a_stream_whose_ends_block_for_moments_is_no_hang(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert skate.get(read_numbers.remote(4)) > 0
    assert NOTHING_RUNS not in capfd.readouterr().err


def test_a_get_whose_time_is_up_counts_what_lacks_a_value() -> None:
    late = sleep.remote(10)
    refs = [late, *(skate.put(i) for i in range(8)), late]
    with pytest.raises(GetTimeoutError, match=r"timed out: 2 of 10 refs"):
        skate.get(refs, timeout=0.1)
    skate.cancel(late, force=True)


class _SlowToStart:
    def __init__(self) -> None:
        threading.Event().wait(20)


def test_a_constructor_has_its_classs_name_from_the_start() -> None:
    actor = skate.remote(_SlowToStart).remote()
    names = set(skate.summary().functions)
    assert "_SlowToStart.__init__" in names
    assert not any(name.startswith("?") for name in names)
    skate.kill(actor)


@skate.remote(num_returns="streaming")
def late_numbers() -> Iterator[int]:
    threading.Event().wait(20)
    yield 1


def test_an_item_that_has_not_come_is_explained_by_its_task() -> None:
    stream = late_numbers.remote()
    assert skate.wait([stream], timeout=0.1) == ([], [stream])
    statuses = {row.task_status for row in state.list_objects()}
    assert "FAILED" not in statuses
    skate.cancel(stream, force=True)


@skate.remote(num_cpus=1)
class Alone:
    def turn(self) -> None:
        pass


@skate.remote
def wait_for_seconds(refs: list[skate.ObjectRef[None]], seconds: float) -> int:
    return len(skate.wait(refs, timeout=seconds)[0])


def test_a_task_that_goes_on_at_a_deadline_is_no_hang(
    capfd: pytest.CaptureFixture[str],
) -> None:
    alone = Alone.remote()
    skate.get(alone.turn.remote())
    never = sleep.options(num_cpus=2).remote(0)
    assert skate.get(wait_for_seconds.remote([never], 5)) == 0
    assert NOTHING_RUNS not in capfd.readouterr().err
    with pytest.raises(GetTimeoutError):
        skate.get(never, timeout=5)
    report = capfd.readouterr().err
    assert NOTHING_RUNS in report
    assert "Free what is waited for." in report  # it has a timeout
