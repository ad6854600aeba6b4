"""A request's body, read as it comes: bytes of tensors go straight to their place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import numpy as np

import skate

from .protocol import HEADER_LENGTH, InferRequest, ProtocolError, parse_request

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_IN_STORE = 4096  # bytes; smaller tensors travel in messages anyway


class ClientGoneError(Exception):
    """The connection was closed before the request was complete."""


class Body:
    """What the client sends, in pieces, up to ``max_bytes`` in all."""

    def __init__(self, receive: Receive, headers: Headers, max_bytes: int) -> None:
        self._receive = receive
        self._piece = memoryview(b"")  # received, and not read yet
        self._more = True
        self._received = 0
        self._max_bytes = max_bytes
        self._check_size(headers.number("content-length") or 0)

    async def all(self) -> bytes:
        """What is left of it."""
        pieces = [bytes(self._piece)]
        while await self._next():
            pieces.append(bytes(self._piece))
        self._piece = memoryview(b"")
        return b"".join(pieces)

    async def exactly(self, size: int) -> bytes:
        taken = bytearray(size)
        await self.into(memoryview(taken), "the JSON")
        return bytes(taken)

    async def into(self, target: memoryview, what: str) -> None:
        """Fill ``target``, of bytes.

        Raises:
            ProtocolError: the body ends before that.
        """
        filled = 0
        while filled < len(target):
            if not self._piece and not await self._next():
                raise ProtocolError(
                    f"the body ends {len(target) - filled} bytes before the end of "
                    f"{what}."
                )
            part = self._piece[: len(target) - filled]
            target[filled : filled + len(part)] = part
            self._piece = self._piece[len(part) :]
            filled += len(part)

    async def end(self) -> None:
        """Raise ProtocolError if there is more."""
        while not self._piece and await self._next():
            pass
        if self._piece:
            raise ProtocolError(
                "the body is longer than the JSON and the tensors that it announces."
            )

    async def _next(self) -> bool:
        """The next piece, which may be empty; False at the end."""
        if not self._more:
            return False
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body = message.get("body", b"")
        self._more = message.get("more_body", False)
        self._received += len(body)
        self._check_size(self._received)
        self._piece = memoryview(body)
        return bool(body) or self._more

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise ProtocolError(
                f"the body has {size} bytes or more; at most {self._max_bytes} are "
                "taken (max_body_bytes).",
                413,
            )


class Headers:
    """Of a request, by lower-case name."""

    def __init__(self, pairs: list[tuple[bytes, bytes]]) -> None:
        self._pairs = {name.lower(): value for name, value in pairs}

    def get(self, name: str) -> str:
        return self._pairs.get(name.encode(), b"").decode("latin-1")

    def number(self, name: str) -> int | None:
        """None if it is not there.

        Raises:
            ProtocolError: it is no number.
        """
        text = self.get(name)
        if not text:
            return None
        if not (text.isascii() and text.isdigit() and len(text) < 16):
            raise ProtocolError(f"the header {name} is {text[:40]!r}, not a number.")
        return int(text)


async def read_request(
    receive: Receive, headers: Headers, max_bytes: int, max_states: int
) -> tuple[InferRequest, dict[str, np.ndarray]]:
    """The request, and its inputs by name.

    Raises:
        ProtocolError: it is not what the protocol says, or larger than allowed.
        ClientGoneError: it is incomplete, and nobody is there to be told.
    """
    if headers.get("content-encoding") not in ("", "identity"):
        raise ProtocolError(
            f"Content-Encoding {headers.get('content-encoding')!r} is not taken; send "
            "the body as it is.",
            415,
        )
    body = Body(receive, headers, max_bytes)
    length = headers.number(HEADER_LENGTH)
    if length is not None and length > max_bytes:
        raise ProtocolError(f"{HEADER_LENGTH} {length} is more than any body may have.")
    text = await (body.all() if length is None else body.exactly(length))
    request = parse_request(_json(text))
    for tensor in request.inputs:
        if not 0 < tensor.shape[0] <= max_states:
            raise ProtocolError(
                f"input {tensor.name!r} has shape {list(tensor.shape)}; its first axis "
                f"counts the states, which may be 1 to {max_states}."
            )
    announced = sum(tensor.nbytes for tensor in request.inputs if tensor.is_binary)
    if announced > max_bytes:
        raise ProtocolError(
            f"the inputs have {announced} bytes; at most {max_bytes} are taken "
            "(max_body_bytes).",
            413,
        )
    inputs: dict[str, np.ndarray] = {}
    for tensor in request.inputs:
        if tensor.is_binary:
            array = _room(tensor.shape, tensor.dtype, tensor.nbytes)
            if tensor.nbytes:
                flat: Any = array.reshape(-1).view(np.uint8)
                await body.into(memoryview(flat), f"input {tensor.name!r}")
            if tensor.dtype == np.bool_:  # a byte may be more than one
                np.not_equal(array.view(np.uint8), 0, out=array)
            inputs[tensor.name] = array
        else:
            inputs[tensor.name] = tensor.array()
    await body.end()
    return request, inputs


def _room(shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int) -> np.ndarray:
    # In the store, so that the replica evaluates the bytes where they came to lie.
    if nbytes < _IN_STORE:
        return np.empty(shape, dtype)
    return skate.empty(shape, dtype)


def _json(text: bytes) -> Any:
    import orjson

    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"the body is not JSON: {error}.") from None


class ReadTimeout:
    """Ends the running task's ``with`` block with ProtocolError after ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._over = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None

        def end() -> None:
            self._over = True
            task.cancel()

        self._timer = asyncio.get_running_loop().call_later(self._seconds, end)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._over and kind is asyncio.CancelledError:
            raise ProtocolError(
                f"the request did not come within {self._seconds:g} s.", 408
            ) from None
