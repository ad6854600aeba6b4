"""Hand-written shared memory: fixed slots, two semaphores a client, nothing else.

What one writes when there is one model, one shape and no faults: no checks, versions or
batching, and whoever dies leaves the other waiting. ``store``: states are written in
place. ``arrays``: they are copied into the slot.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from ..served.models import BATCH, OUTPUTS
from ..serving import Case, Window, drive, model_of, row_of

STATES = ("arrays", "store")


def _slots(case: Case) -> int:
    return case.in_flight + 1  # as many as the client fills


def does(case: Case) -> bool:
    return case.clients == 1


def _arrays(memory: SharedMemory, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """States (slots, 64, width) and outputs (slots, 64, 8)."""
    width = row_of(case).width
    states: np.ndarray = np.ndarray(
        (_slots(case), BATCH, width), np.float32, memory.buf
    )
    outputs: np.ndarray = np.ndarray(
        (_slots(case), BATCH, OUTPUTS), np.float32, memory.buf, states.nbytes
    )
    return states, outputs


def _serve(case: Case, name: str, asked: Any, answered: Any) -> None:
    memory = SharedMemory(name)
    states, outputs = _arrays(memory, case)
    model = model_of(case)
    turn = 0
    while True:
        asked.acquire()
        outputs[turn] = model.evaluate(states[turn])
        answered.release()
        turn = (turn + 1) % _slots(case)


class _Client:
    def __init__(
        self, memory: SharedMemory, case: Case, asked: Any, answered: Any
    ) -> None:
        self._states, self._outputs = _arrays(memory, case)
        self._asked, self._answered = asked, answered
        self._in_place = case.states == "store"
        self._given = 0
        self._slots = _slots(case)
        self._sent = self._received = 0

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        if not self._in_place:
            return np.empty(shape, np.float32)
        slot: np.ndarray = self._states[self._given]
        self._given += 1
        return slot

    def submit(self, states: np.ndarray) -> Callable[[], Any]:
        slot = self._states[self._sent % self._slots]
        self._sent += 1
        if not self._in_place:
            slot[:] = states
        self._asked.release()
        return self._receive

    def _receive(self) -> np.ndarray:
        self._answered.acquire()
        outputs: np.ndarray = self._outputs[self._received % self._slots].copy()
        self._received += 1
        return outputs


class _Server:
    def __init__(self, case: Case, client: _Client) -> None:
        self._case = case
        self._client = client

    def measure(self, seconds: float) -> list[Window]:
        return [drive(self._client, self._case, seconds)]


@contextmanager
def served(case: Case) -> Iterator[_Server]:
    spawn = multiprocessing.get_context("spawn")
    asked, answered = spawn.Semaphore(0), spawn.Semaphore(0)
    size = _slots(case) * BATCH * (row_of(case).width + OUTPUTS) * 4
    memory = SharedMemory(create=True, size=size)
    server = spawn.Process(
        target=_serve, args=(case, memory.name, asked, answered), daemon=True
    )
    server.start()
    client = _Client(memory, case, asked, answered)
    try:
        yield _Server(case, client)
    finally:
        server.terminate()
        server.join()
        del client
        memory.unlink()
