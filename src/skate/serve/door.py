"""``serve.http``: a deployment for the world outside of the program.

The server is uvicorn, in a thread of the calling process; routes are starlette's. A
request goes from here to a replica as any other, and shares its batches.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .deployment import Deployment

if TYPE_CHECKING:
    import uvicorn


class HttpServer:
    """A running server; made by :func:`http`.

    Attributes:
        url: where it answers, such as ``http://127.0.0.1:8000``.
        token: what clients send as ``Authorization: Bearer ...``; None: nothing.
    """

    def __init__(self, url: str, token: str | None, server: _Server) -> None:
        self.url = url
        self.token = token
        self._server = server

    def close(self, timeout: float = 5.0) -> None:
        """Take no more connections, let requests end for ``timeout`` seconds, stop.

        The deployment goes on.
        """
        self._server.stop(timeout)

    def wait(self) -> None:
        """Return when the server has stopped."""
        self._server.join()

    def __enter__(self) -> HttpServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<skate.serve.HttpServer {self.url}>"


def http(
    deployment: Deployment,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = "",
    *,
    name: str = "model",
    example: Any = None,
    max_body_bytes: int = 64 << 20,
    read_timeout_s: float = 30.0,
    max_requests: int = 256,
) -> HttpServer:
    """Answer the Open Inference Protocol (v2) over HTTP with ``deployment``.

    Tensors come as JSON or by the binary extension, as the clients of KServe and Triton
    send them. A page to try the model is at ``/docs``, its description at
    ``/openapi.json``, metrics for Prometheus at ``/metrics``.

    A request with one input gives the model that array, whatever its name; with
    several, a dictionary of them. An output that is one array is called ``outputs``;
    those of a tree by their keys. ``model_version`` in an answer is the weights'.

    Args:
        host: where to listen; not only this machine's own programs reach another one.
        port: 0 takes any that is free.
        token: what clients must send; "" makes one up, None asks for none.
        name: of the model, in URLs. A deployment of several has its ``model_ids``.
        example: states like those the model takes, evaluated once at the start: the
            metadata and the page then say what they look like. None: they say so after
            the first request.
        max_body_bytes: larger bodies are refused.
        read_timeout_s: for a client to send its body.
        max_requests: that may be under way at once; more are refused.

    Raises:
        ImportError: the extra ``serve`` is not installed.
        OSError: nobody can listen there.
        ValueError: a number is out of range.
    """
    try:
        import orjson  # noqa: F401
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ImportError(
            f"serve.http needs {error.name}, which is not installed: "
            "pip install 'skate[serve]'"
        ) from error
    from .app import Limits, make_app

    for what, number in [
        ("max_body_bytes", max_body_bytes),
        ("max_requests", max_requests),
    ]:
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{what}={number!r}; expected an integer of at least 1.")
    if not read_timeout_s > 0:
        raise ValueError(f"read_timeout_s={read_timeout_s!r}; expected seconds.")
    if token == "":
        token = secrets.token_urlsafe(24)
    _expect_large_bodies()
    names = tuple(deployment.versions())
    app = make_app(
        deployment,
        {"": name} if names == ("",) else {model_id: model_id for model_id in names},
        host=host,
        token=token,
        example=example,
        limits=Limits(max_body_bytes, read_timeout_s, max_requests),
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot listen on {host}:{port}: {error.strerror}"
        ) from error
    # Connections inherit it. Without it, an answer in two parts waits 40 ms in between.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    shown = "127.0.0.1" if host in ("", "0.0.0.0") else host
    shown = f"[{shown}]" if family == socket.AF_INET6 else shown
    url = f"http://{shown}:{listener.getsockname()[1]}"
    return HttpServer(url, token, _start(config, [listener]))


def _expect_large_bodies() -> None:
    """Have glibc keep the memory of a body's pieces for the next body.

    It would give it back and have the system zero it anew: 200 to 600 us for 6.4 MB.
    It does not once it has seen a block as large as this one come and go, as it does in
    any program with large arrays. No page of the block is touched.
    """
    bytes(16 << 20)


class _Server:
    """uvicorn in a thread, which is told to stop and does so."""

    def __init__(
        self, server: uvicorn.Server, sockets: Sequence[socket.socket]
    ) -> None:
        self._server = server
        self._sockets = list(sockets)
        self._failure: BaseException | None = None
        self._up = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="skate-serve-http", daemon=True
        )

    def start(self) -> None:
        startup = self._server.startup

        async def started(sockets: list[socket.socket] | None = None) -> None:
            await startup(sockets=sockets)
            self._up.set()

        self._server.startup = started  # type: ignore[method-assign]
        self._thread.start()
        self._up.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self, timeout: float) -> None:
        self._server.config.timeout_graceful_shutdown = max(1, round(timeout))
        self._server.should_exit = True
        self._thread.join()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        try:
            self._server.run(sockets=self._sockets)
        except BaseException as error:  # told to whoever starts it
            self._failure = error
        finally:
            for listener in self._sockets:
                listener.close()
            self._up.set()


def _start(config: uvicorn.Config, sockets: Sequence[socket.socket]) -> _Server:
    import uvicorn

    server = _Server(uvicorn.Server(config), sockets)
    server.start()
    return server
