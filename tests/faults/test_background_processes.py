"""What workers had started and left to run ends with them, and not before."""

from __future__ import annotations

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
