"""What Ray keeps for a future of one of its refs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from polling import wait_until

import skate

pytest.importorskip("ray", reason="Ray is not installed")


@skate.remote(num_cpus=0)
class Gate:
    def __init__(self) -> None:
        self.event = asyncio.Event()

    async def wait(self) -> None:
        await self.event.wait()

    async def open(self) -> None:
        self.event.set()


def counted() -> dict[Any, Any]:
    """The refs that this process holds."""
    from ray._private.worker import global_worker

    found: dict[Any, Any] = global_worker.core_worker.get_all_reference_counts()
    return found


@pytest.mark.usefixtures("shared_ray")
def test_a_ref_is_let_go_of_when_its_future_is_cancelled() -> None:
    with skate.init("ray"):
        gate = Gate.remote()
        future = gate.wait.remote().future()
        (name,) = [name for name in counted() if counted()[name]["local"]]
        assert future.cancel()
        assert wait_until(lambda: name not in counted())
        skate.get(gate.open.remote())
