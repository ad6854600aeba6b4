"""The actor that holds one copy of a model and evaluates what callers send."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .batcher import Array, Batcher, Request

# Arrays whose first axis is the batch: one, or a tuple or dictionary of them.
Outputs = Any


class Model(Protocol):
    """What can be served. ``set_weights`` is needed for ``Deployment.update``."""

    def evaluate(self, states: Array, /) -> Outputs:
        """Outputs for ``(B, ...)`` states: arrays whose first axis is B long."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What :func:`skate.serve.deploy` was told, after checking."""

    max_batch_size: int
    batch_wait_s: float
    max_queued: int  # states


class QueueFullError(RuntimeError):
    """A replica has ``max_queued`` states waiting; this request was not queued."""


class Replica:
    """Runs as an async actor: every method below shares one event loop's thread.

    The model is called on that thread too, so an update falls between two batches,
    and requests that arrive during an evaluation form the next batch.
    """

    def __init__(
        self, model: Callable[..., Model], args: tuple[Any, ...], options: ServeOptions
    ) -> None:
        self._model: Any = model(*args)  # Any: set_weights is optional
        self._options = options
        self._batcher = Batcher(options.max_batch_size, options.batch_wait_s)
        self._timer: asyncio.TimerHandle | None = None
        self._version = 0
        self._requests = self._states = self._batches = 0
        self._busy_s = 0.0

    async def ready(self) -> None:
        """Ends when the model is there; its constructor's error is raised here."""

    async def evaluate(self, states: Array) -> tuple[Outputs, int]:
        """The model's outputs for ``states``, and the version that made them."""
        self._requests += 1
        self._states += len(states)
        if len(states) == self._options.max_batch_size:
            return self._run_model(states), self._version
        if self._batcher.states + len(states) > self._options.max_queued:
            raise QueueFullError(
                f"{self._batcher.states} states are waiting and max_queued is "
                f"{self._options.max_queued}. Send fewer at a time, deploy more "
                "replicas, or raise max_queued."
            )
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[Outputs, int]] = loop.create_future()
        self._batcher.add(Request(states, answer, loop.time()))
        self._schedule(loop)
        return await answer

    async def update(self, weights: Any, version: int | None = None) -> int:
        """Swap the weights; returns their version. An older version is ignored."""
        if not hasattr(self._model, "set_weights"):
            raise TypeError(
                f"{type(self._model).__name__} has no set_weights(weights), so its "
                "deployment cannot be updated."
            )
        version = self._version + 1 if version is None else version
        if version > self._version:
            self._model.set_weights(weights)
            self._version = version
        return self._version

    async def stats(self) -> dict[str, Any]:
        return {
            "requests": self._requests,
            "states": self._states,
            "batches": self._batches,
            "queued": self._batcher.states,
            "busy_s": self._busy_s,
            "version": self._version,
        }

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        due_at = self._batcher.due_at()
        if due_at is None:
            return
        if self._timer is not None:
            if self._timer.when() <= due_at:
                return
            self._timer.cancel()
        # Even a batch that is due now waits one turn of the loop, so that requests
        # which arrived together are answered together.
        self._timer = loop.call_at(due_at, self._evaluate_batch, loop)

    def _evaluate_batch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        batch = [r for r in self._batcher.take() if not r.answer.done()]
        try:
            if len(batch) == 1:
                parts = [self._run_model(batch[0].states)]
            elif batch:
                outputs = self._run_model(np.concatenate([r.states for r in batch]))
                parts = _split(outputs, [len(r.states) for r in batch])
            for request, part in zip(batch, parts, strict=True):
                request.answer.set_result((part, self._version))
        except Exception as error:
            for request in batch:
                request.answer.set_exception(error)
        self._schedule(loop)

    def _run_model(self, states: Array) -> Outputs:
        start = time.perf_counter()
        try:
            outputs = self._model.evaluate(states)
        finally:
            self._busy_s += time.perf_counter() - start
            self._batches += 1
        for array in _arrays(outputs):
            if np.ndim(array) == 0 or len(array) != len(states):
                raise ValueError(
                    f"{type(self._model).__name__}.evaluate got {len(states)} states "
                    f"and returned an array of shape {np.shape(array)}: the first "
                    "axis of every output must have one entry for each state."
                )
        return outputs


def _arrays(outputs: Outputs) -> list[Any]:
    if isinstance(outputs, Mapping):
        return list(outputs.values())
    if isinstance(outputs, tuple):
        return list(outputs)
    return [outputs]


def _split(outputs: Outputs, sizes: list[int]) -> list[Outputs]:
    """The part of ``outputs`` that belongs to each caller, in order."""
    parts: list[Outputs] = []
    start = 0
    for size in sizes:
        rows = slice(start, start + size)
        if isinstance(outputs, Mapping):
            parts.append({name: array[rows] for name, array in outputs.items()})
        elif isinstance(outputs, tuple):
            parts.append(tuple(array[rows] for array in outputs))
        else:
            parts.append(outputs[rows])
        start += size
    return parts
