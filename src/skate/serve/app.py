"""The routes of ``serve.http``: inference, metadata, health, metrics, and a page."""

from __future__ import annotations

import asyncio
import hmac
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

import skate

from ..exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError
from .body import ClientGoneError, Headers, ReadTimeout, Receive, read_request
from .deployment import Deployment
from .errors import (
    DrainingError,
    QueueFullError,
    StatesError,
    UnknownClientError,
    UnknownModelError,
)
from .openapi import document
from .page import PAGE
from .prometheus import register_prometheus
from .protocol import (
    HEADER_LENGTH,
    InferRequest,
    ProtocolError,
    build_answer,
    chosen,
    describe,
    named,
)

Scope = MutableMapping[str, Any]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

_LOCAL_HOSTS = ["localhost", "127.0.0.1", "[::1]"]
_OPEN = {"/v2/health/live", "/v2/health/ready", "/docs"}  # without a token
_JOINED = 1 << 16  # bytes; copying so many costs less than writing to a socket twice
_STATUS: list[tuple[type[Exception], int]] = [
    (StatesError, 400),
    (UnknownModelError, 404),
    (UnknownClientError, 409),
    (QueueFullError, 429),
    (GetTimeoutError, 504),
    (DrainingError, 503),
    (ActorDiedError, 503),
    (ActorUnavailableError, 503),
]


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the server."""

    max_body_bytes: int
    read_timeout_s: float
    max_requests: int


class Door:
    """One deployment, and what is known of its models' tensors."""

    def __init__(
        self, deployment: Deployment, models: Mapping[str, str], limits: Limits
    ) -> None:
        self.deployment = deployment
        self.ids = {name: model_id for model_id, name in models.items()}
        self.limits = limits
        self.under_way = 0
        # By model: inputs and outputs as the metadata list them.
        self.seen: dict[str, tuple[list[Any], list[Any]]] = {}

    def learn(
        self, name: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> None:
        self.seen[name] = describe(inputs), describe(outputs)

    def model_id(self, name: str) -> str:
        if name not in self.ids:
            raise ProtocolError(
                f"there is no model {name!r}; there are {', '.join(self.ids)}.", 404
            )
        return self.ids[name]

    def metadata(self, name: str, versions: Mapping[str, int]) -> dict[str, Any]:
        inputs, outputs = self.seen.get(name, ([], []))
        return {
            "name": name,
            "versions": [str(versions[self.ids[name]])],
            "platform": "skate",
            "inputs": inputs,
            "outputs": outputs,
        }


def make_app(
    deployment: Deployment,
    models: Mapping[str, str],
    *,
    host: str,
    token: str | None,
    example: Any,
    limits: Limits,
) -> App:
    """The application.

    Args:
        models: names in URLs, by ``model_id``.
        host: on which it will listen; requests for other hosts are refused, unless it
            listens for all.
    """
    door = Door(deployment, models, limits)
    if example is not None:
        for name, model_id in door.ids.items():
            outputs = deployment.evaluate(example, model_id=model_id)
            inputs = named(example)
            if list(inputs) == ["outputs"]:
                inputs = {"states": inputs["outputs"]}
            door.learn(name, inputs, named(outputs))
    infer = _Infer(door)
    model = "/v2/models/{name}"
    routes = [
        Route("/v2", _server_metadata),
        Route("/v2/health/live", _live),
        Route("/v2/health/ready", _ready),
        Route("/metrics", _metrics),
        Route("/openapi.json", _openapi),
        Route("/docs", _page),
    ]
    for at in (model, model + "/versions/{version}"):
        routes += [
            Route(at, _model_metadata),
            Route(at + "/ready", _model_ready),
            Route(at + "/infer", infer, methods=["POST"]),
        ]
    app = Starlette(routes=routes, exception_handlers={ProtocolError: _refused})
    app.state.door = door
    guarded: App = _Guard(app, infer, token)
    if host in ("", "0.0.0.0", "::"):
        return guarded
    return TrustedHostMiddleware(guarded, [*_LOCAL_HOSTS, host], www_redirect=False)


class _Guard:
    """Lets nobody in without the token, and nothing out without a clear message."""

    def __init__(self, app: App, infer: App, token: str | None) -> None:
        self._app = app
        self._infer = infer
        self._expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._expected and scope["path"] not in _OPEN:
            given = Headers(scope["headers"]).get("authorization").encode("latin-1")
            if not hmac.compare_digest(given, self._expected):
                refusal = _error(
                    "send the server's token, as 'Authorization: Bearer <token>'.", 401
                )
                refusal.headers["www-authenticate"] = "Bearer"
                await refusal(scope, receive, send)
                return
        app = self._app
        if scope["type"] == "http" and scope["method"] == "POST":
            names = _inferred(scope["path"])
            if names is not None:  # what is most frequent need not pass by all routes
                scope["path_params"] = names
                app = self._infer
        await app(scope, receive, send)


def _inferred(path: str) -> dict[str, str] | None:
    """What ``/v2/models/{name}[/versions/{version}]/infer`` names, or None."""
    match path.split("/"):
        case ["", "v2", "models", name, "infer"] if name:
            return {"name": name}
        case ["", "v2", "models", name, "versions", version, "infer"] if (
            name and version
        ):
            return {"name": name, "version": version}
    return None


class _Infer:
    """``POST .../infer``. An ASGI application of its own: bodies may be large."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        door = self._door
        if door.under_way >= door.limits.max_requests:
            answer = _error(
                f"{door.under_way} requests are under way; try again later "
                "(max_requests).",
                429,
            )
            await answer(scope, receive, send)
            return
        door.under_way += 1
        try:
            answer = await self._answer(scope, receive)
        except ClientGoneError:
            return
        except ProtocolError as error:
            answer = _error(str(error), error.status)
            # What is left of its body must not be taken for the next request.
            answer.headers["connection"] = "close"
        except asyncio.CancelledError:  # the time for a graceful end is over
            answer = _error("the server was closed before the answer came.", 503)
        except Exception as error:
            answer = _failure(error)
        finally:
            door.under_way -= 1
        await answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Any:
        door, name = self._door, scope["path_params"]["name"]
        model_id = door.model_id(name)
        with ReadTimeout(door.limits.read_timeout_s):
            request, inputs = await read_request(
                receive,
                Headers(scope["headers"]),
                door.limits.max_body_bytes,
                door.deployment.max_batch_size,
            )
        states: Any = inputs if len(inputs) > 1 else next(iter(inputs.values()))
        client, options = _sequence(request)
        try:
            result, version = await door.deployment.aevaluate(
                states, return_version=True, model_id=model_id, **options
            )
        except (ValueError, TypeError) as error:
            if isinstance(error, skate.exceptions.SkateError):
                raise
            raise ProtocolError(str(error)) from error  # refused before it was sent
        if client is not None and request.parameters.get("sequence_end"):
            await _in_thread(door.deployment.forget, client, model_id=model_id)
        asked = scope["path_params"].get("version")
        if asked is not None and asked != str(version):
            raise ProtocolError(
                f"the model has version {version} and not {asked[:40]!r}: there is "
                "one at a time.",
                404,
            )
        outputs = named(result)
        if name not in door.seen:
            door.learn(name, inputs, outputs)
        message, following = build_answer(
            name, version, request, chosen(request, outputs)
        )
        return _Answer(message, following)


class _Answer:
    """The JSON of an answer, and the bytes of arrays, which are not joined to it."""

    def __init__(self, message: dict[str, Any], following: list[np.ndarray]) -> None:
        self._head = _dumps(message)
        self._following = following

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = len(self._head) + sum(array.nbytes for array in self._following)
        kind = b"application/octet-stream" if self._following else b"application/json"
        headers = [
            (b"content-type", kind),
            (b"content-length", str(size).encode()),
        ]
        if self._following:
            headers.append((HEADER_LENGTH.encode(), str(len(self._head)).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        parts: list[bytes | memoryview] = [self._head]
        parts += map(_bytes, self._following)
        if size <= _JOINED:
            parts = [b"".join(parts)]
        for left, part in zip(range(len(parts) - 1, -1, -1), parts, strict=True):
            await send(
                {"type": "http.response.body", "body": part, "more_body": left > 0}
            )


def _bytes(array: np.ndarray) -> memoryview:
    # Any: NumPy's types do not say that arrays lend their memory.
    flat: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat)


def _sequence(request: InferRequest) -> tuple[Any, dict[str, Any]]:
    """Whose states these are, by Triton's parameters for sequences of requests."""
    client = request.parameters.get("sequence_id")
    if client in (None, 0, ""):
        return None, {}
    if not isinstance(client, (int, str)):
        raise ProtocolError(f"sequence_id must be a number or a string: {client!r}.")
    reset = bool(request.parameters.get("sequence_start", False))
    return client, {"client": client, "reset": reset}


def _failure(error: Exception) -> Response:
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return _error(str(error), status)
    cause = error.cause if isinstance(error, skate.exceptions.TaskError) else error
    if cause is error:  # not the model's: somebody should see where
        traceback.print_exception(type(error), error, error.__traceback__)
    return _error(f"the model raised {type(cause).__name__}: {cause}", 500)


async def _in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return await asyncio.to_thread(function, *args, **kwargs)


# The small routes -----------------------------------------------------------------


def _door(request: Request) -> Door:
    door: Door = request.app.state.door
    return door


async def _server_metadata(request: Request) -> Response:
    return _json(
        {
            "name": "skate",
            "version": skate.__version__,
            "extensions": ["binary_tensor_data", "sequence"],
        }
    )


async def _live(request: Request) -> Response:
    return _json({"live": True})


async def _ready(request: Request) -> Response:
    try:
        stats = await _in_thread(_door(request).deployment.stats)
    except skate.exceptions.SkateError as error:
        return _error(f"no replica answers: {error}", 503)
    return _json({"ready": stats["replicas"] > 0})


async def _model_metadata(request: Request) -> Response:
    door, name = _door(request), request.path_params["name"]
    door.model_id(name)
    versions = await _in_thread(door.deployment.versions)
    _check_version(request, versions[door.ids[name]])
    return _json(door.metadata(name, versions))


async def _model_ready(request: Request) -> Response:
    door, name = _door(request), request.path_params["name"]
    door.model_id(name)
    versions = await _in_thread(door.deployment.versions)
    _check_version(request, versions[door.ids[name]])
    return _json({"name": name, "ready": True})


def _check_version(request: Request, version: int) -> None:
    asked = request.path_params.get("version")
    if asked is not None and asked != str(version):
        raise ProtocolError(
            f"the model has version {version} and not {asked[:40]!r}.", 404
        )


async def _metrics(request: Request) -> Response:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
    from prometheus_client.exposition import generate_latest

    registry = CollectorRegistry()
    register_prometheus(_door(request).deployment, registry=registry)
    text = await _in_thread(generate_latest, registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


async def _openapi(request: Request) -> Response:
    door = _door(request)
    return _json(document({name: door.seen.get(name) for name in door.ids}))


async def _page(request: Request) -> Response:
    return HTMLResponse(PAGE)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProtocolError)
    return _error(str(error), error.status)


def _json(message: Any, status: int = 200) -> Response:
    return Response(_dumps(message), status, media_type="application/json")


def _error(message: str, status: int) -> Response:
    return _json({"error": message}, status)


def _dumps(message: Any) -> bytes:
    # NaN and infinities, which JSON lacks, become null.
    return orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
