"""A worker with nothing to do collects garbage, and holds nobody up by it."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from polling import wait_until

import skate

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

MANY = 20_000  # objects: to collect all of them is put off for a second or two


@pytest.fixture
def session() -> Iterator[None]:
    with skate.init("embedded", num_cpus=2):
        yield


def note_collections(path: Path) -> None:
    """Which generations are collected from now on."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(phase: str, about: dict[str, int]) -> None:
        if phase == "stop":
            os.write(file, str(about["generation"]).encode())

    gc.callbacks.append(note)


class Owner:
    def __init__(self, n: int, path: Path) -> None:
        self.kept = [{"i": [i]} for i in range(n)]
        gc.collect()
        note_collections(path)

    def size(self) -> int:
        return len(self.kept)


@pytest.mark.usefixtures("session")
def test_of_a_large_heap_what_is_young_is_collected_first(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    owner = skate.remote(Owner).remote(MANY, seen)
    skate.get(owner.size.remote())
    assert wait_until(lambda: seen.read_text() == "12"), seen.read_text()


class Ticking:
    def __init__(self, path: Path) -> None:
        self.path = path

    async def run(self, seconds: float) -> str:
        gc.collect()
        note_collections(self.path)
        await asyncio.sleep(seconds)
        return self.path.read_text()


@pytest.mark.usefixtures("session")
def test_calls_that_run_are_not_held_up_by_a_collection(tmp_path: Path) -> None:
    actor = skate.remote(Ticking).remote(tmp_path / "seen")
    assert "2" not in skate.get(actor.run.remote(1.5))
