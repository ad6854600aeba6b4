"""ZeroMQ: DEALER to ROUTER over a unix socket, without copies where pyzmq allows."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..served.models import BATCH
from ..serving import Case, Window, model_of
from . import clients

STATES = ("arrays",)


def does(case: Case) -> bool:
    return case.model == "sleep"


def _serve(case: Case, address: str) -> None:
    import zmq

    model = model_of(case)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as sock:
        sock.bind(address)
        while True:
            sender, body = sock.recv_multipart(copy=False)
            states = np.frombuffer(body.buffer, np.float32).reshape(BATCH, -1)
            sock.send_multipart([sender, model.evaluate(states)], copy=False)


class _Client:
    def __init__(self, address: str) -> None:
        import zmq

        self._sock = zmq.Context.instance().socket(zmq.DEALER)
        self._sock.linger = 0
        self._sock.connect(address)

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.empty(shape, np.float32)

    def submit(self, states: np.ndarray) -> Callable[[], Any]:
        self._sock.send(states, copy=False)
        return self._receive

    def _receive(self) -> np.ndarray:
        frame = self._sock.recv(copy=False)
        return np.frombuffer(frame.buffer, np.float32).reshape(BATCH, -1)


class _Server:
    def __init__(self, case: Case, address: str) -> None:
        self._case = case
        self._address = address

    def measure(self, seconds: float) -> list[Window]:
        return clients.measure(self._case, seconds, _Client, self._address)


@contextmanager
def served(case: Case) -> Iterator[_Server]:
    with tempfile.TemporaryDirectory() as folder:
        address = f"ipc://{os.path.join(folder, 'socket')}"
        server = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(case, address), daemon=True
        )
        server.start()
        try:
            yield _Server(case, address)
        finally:
            server.terminate()
            server.join()
