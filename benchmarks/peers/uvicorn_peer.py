"""uvicorn with starlette: a binary body, and JSON by orjson, over loopback."""

from __future__ import annotations

import http.client
import multiprocessing
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ..served.models import BATCH
from ..serving import Case, Window, model_of
from . import clients
from .http_client import HttpClient

STATES = ("binary", "json")


def does(case: Case) -> bool:
    return case.model == "sleep" and (case.states == "binary" or case.clients == 1)


def _serve(case: Case, port: int) -> None:
    import orjson
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    model = model_of(case)

    async def binary(request: Request) -> Response:
        states = np.frombuffer(await request.body(), np.float32).reshape(BATCH, -1)
        outputs = await run_in_threadpool(model.evaluate, states)
        return Response(outputs.tobytes())

    async def json(request: Request) -> Response:
        states = np.array(orjson.loads(await request.body()), np.float32)
        outputs = await run_in_threadpool(model.evaluate, states)
        return Response(orjson.dumps(outputs, option=orjson.OPT_SERIALIZE_NUMPY))

    routes = [
        Route("/binary", binary, methods=["POST"]),
        Route("/json", json, methods=["POST"]),
    ]
    uvicorn.run(
        Starlette(routes=routes), host="127.0.0.1", port=port, log_level="warning"
    )


class _Client(HttpClient):
    def __init__(self, port: int, kind: str, in_flight: int) -> None:
        super().__init__(port, in_flight)
        self._kind = kind

    def _ask(
        self, connection: http.client.HTTPConnection, states: np.ndarray
    ) -> np.ndarray:
        import orjson

        if self._kind == "binary":
            connection.request("POST", "/binary", memoryview(states).cast("B"))
            body = connection.getresponse().read()
            outputs = np.frombuffer(body, np.float32).reshape(BATCH, -1)
        else:
            option = orjson.OPT_SERIALIZE_NUMPY
            connection.request("POST", "/json", orjson.dumps(states, option=option))
            body = connection.getresponse().read()
            outputs = np.array(orjson.loads(body), np.float32)
        return outputs


class _Server:
    def __init__(self, case: Case, port: int) -> None:
        self._case = case
        self._port = port

    def measure(self, seconds: float) -> list[Window]:
        case = self._case
        return clients.measure(
            case, seconds, _Client, self._port, case.states, case.in_flight
        )


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for_port(port: int, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


@contextmanager
def served(case: Case) -> Iterator[_Server]:
    port = free_port()
    server = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(case, port), daemon=True
    )
    server.start()
    try:
        wait_for_port(port)
        yield _Server(case, port)
    finally:
        server.terminate()
        server.join()
