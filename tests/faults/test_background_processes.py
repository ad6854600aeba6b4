"""What workers had started and left to run ends with them, and not before."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from polling import wait_until

import skate


@skate.remote(num_cpus=0)
class Keeper:
    def start(self) -> int:
        """A process whose parent has ended: a child of the supervisor."""
        command = "sleep 300 >/dev/null 2>&1 & echo $!"
        found = subprocess.run(["sh", "-c", command], capture_output=True, check=True)
        return int(found.stdout)


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_background_process_ends_with_the_actor_that_started_it_alone() -> None:
    skate.init(num_cpus=1)
    try:
        first, second = Keeper.remote(), Keeper.remote()
        of_first, of_second = skate.get([first.start.remote(), second.start.remote()])
        assert runs(of_first)
        assert runs(of_second)
        skate.kill(first)
        assert wait_until(lambda: not runs(of_first))
        assert runs(of_second)
        skate.kill(second)
        assert wait_until(lambda: not runs(of_second))
    finally:
        skate.shutdown()


@skate.remote(max_retries=0)
def leave_a_printer() -> None:
    subprocess.Popen(["yes", "from a child"])
    os._exit(3)


@skate.remote
def answer(x: int) -> int:
    return x


def test_a_child_that_prints_without_end_holds_up_nobody() -> None:
    with skate.init(num_cpus=2, log_to_driver=False):
        for i in range(3):
            with pytest.raises(skate.exceptions.WorkerCrashedError):
                skate.get(leave_a_printer.remote(), timeout=30)
            assert skate.get(answer.remote(i), timeout=30) == i
