"""Several threads of one driver, which use everything at once."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

import skate
from skate.collective import GroupSpec
from skate.exceptions import ResourceError


def test_threads_of_one_driver_get_what_each_has_asked_for() -> None:
    # In a process of its own: a crash, or a hang, is its own.
    script = Path(__file__).with_name("threads.py")
    ended = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(script), "5"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert int(ended.stdout.split()[0]) > 0


@skate.remote
def wait_for_file(path: Path) -> None:
    while not path.exists():
        threading.Event().wait(0.002)


def test_a_loop_over_what_completes_ends_when_another_thread_closes_it(
    tmp_path: Path,
) -> None:
    with skate.init("embedded", num_cpus=1):
        ref = wait_for_file.remote(tmp_path / "gate")
        loop = skate.as_completed([ref])
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.extend(loop))
        thread.start()
        while not is_waiting(thread):
            threading.Event().wait(0.002)
        loop.close()
        thread.join(timeout=20)
        assert not thread.is_alive()
        assert got == []
        (tmp_path / "gate").touch()
        skate.get(ref, timeout=20)


@skate.remote(concurrency_groups={"one": 2, "other": 2})
class Threaded:
    @skate.method(concurrency_group="one")
    def allow_threads(self, allowed: bool) -> None:
        if allowed:
            threading.Thread.start = self.start  # type: ignore[method-assign]
            return
        self.start = threading.Thread.start

        def start(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        threading.Thread.start = start  # type: ignore[method-assign]

    @skate.method(concurrency_group="one")
    def give_back(self, number: int) -> int:
        return number

    @skate.method(concurrency_group="other")
    def answer(self) -> int:
        return 7


def test_an_actor_that_can_start_no_more_threads_goes_on_with_those_it_has() -> None:
    with skate.init("embedded", num_cpus=1):
        actor = Threaded.remote()
        skate.get(actor.allow_threads.remote(False))
        refs = [actor.give_back.remote(number) for number in range(20)]
        assert skate.get(refs, timeout=20) == list(range(20))
        with pytest.raises(ResourceError, match=r"no thread .* for answer\(\)"):
            skate.get(actor.answer.remote(), timeout=20)
        skate.get(actor.allow_threads.remote(True), timeout=20)
        assert skate.get(actor.answer.remote(), timeout=20) == 7


def is_waiting(thread: threading.Thread) -> bool:
    """Whether the thread stands in the watch's own code."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code.co_name == "_wait"


@skate.remote
class Rank:
    def __init__(self, rank: int, name: str) -> None:
        self.group = GroupSpec(name, 2).join(rank, 60)

    def send(self, count: int) -> list[int]:
        """From two threads: the numbers that went."""
        went: list[int] = []

        def some(start: int) -> None:
            for number in range(start, count, 2):
                x = np.full(5000, number)
                while True:
                    try:
                        self.group.send(x, 1, timeout=30)
                    except RuntimeError:  # the other thread is in a call
                        continue
                    went.append(number)
                    break

        threads = [threading.Thread(target=some, args=(start,)) for start in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return went

    def receive(self, count: int) -> list[int]:
        x = np.empty(5000, int)
        numbers: list[int] = []
        for _ in range(count):
            self.group.recv(x, 0, timeout=30)
            assert (x == x[0]).all()
            numbers.append(int(x[0]))
        return numbers


def test_messages_of_two_threads_of_a_rank_arrive_whole() -> None:
    with skate.init("embedded", num_cpus=2):
        ranks = [Rank.remote(rank, "threads") for rank in range(2)]
        sent, received = ranks[0].send.remote(400), ranks[1].receive.remote(400)
        assert sorted(skate.get(received, timeout=60)) == list(range(400))
        assert sorted(skate.get(sent, timeout=60)) == list(range(400))
