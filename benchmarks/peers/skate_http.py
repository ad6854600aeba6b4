"""``skate serve``: bytes over HTTP, by the Open Inference Protocol."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np

from ..serving import Case, Window
from . import clients
from .http_client import HttpClient
from .skate_serving import Served
from .uvicorn_peer import free_port, wait_for_port

STATES = ("binary",)
TOKEN = "measured"
HEADER = "Inference-Header-Content-Length"


def does(case: Case) -> bool:
    return case.model == "sleep"


class Model(Served):
    """The model of a case, which the command line gives as JSON."""

    def __init__(self, case: str) -> None:
        super().__init__(Case(**json.loads(case)))


class _Client(HttpClient):
    def _ask(
        self, connection: http.client.HTTPConnection, states: np.ndarray
    ) -> np.ndarray:
        tensor = {"name": "states", "datatype": "FP32", "shape": list(states.shape)}
        tensor["parameters"] = {"binary_data_size": states.nbytes}
        message = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        head = json.dumps(message).encode()
        headers = {
            "Authorization": f"Bearer {TOKEN}",
            HEADER: str(len(head)),
            "Content-Length": str(len(head) + states.nbytes),
        }
        connection.request(
            "POST",
            "/v2/models/model/infer",
            iter([head, memoryview(states).cast("B")]),
            headers,
        )
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(body.decode())
        described = int(answer.headers[HEADER])
        shape = json.loads(body[:described])["outputs"][0]["shape"]
        return np.frombuffer(body, np.float32, offset=described).reshape(shape)


class _Server:
    def __init__(self, case: Case, port: int) -> None:
        self._case = case
        self._port = port

    def measure(self, seconds: float) -> list[Window]:
        case = self._case
        return clients.measure(case, seconds, _Client, self._port, case.in_flight)


@contextmanager
def served(case: Case) -> Iterator[_Server]:
    port = free_port()
    command = [sys.executable, "-m", "skate", "serve", f"{__name__}:Model"]
    command += [json.dumps(asdict(case)), "--port", str(port), "--token", TOKEN]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            wait_for_port(port)
            yield _Server(case, port)
        finally:
            server.terminate()
