"""When small requests become a batch. Pure: the caller supplies the time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]  # any dtype: a model decides what its states are


@dataclass(slots=True, eq=False)
class Request:
    """States of one caller, ``(n, ...)``, and where the answer goes."""

    states: Array
    answer: Any  # an asyncio future in the replica; whatever a test likes
    arrived: float  # seconds, on the caller's clock


@dataclass(slots=True, eq=False)
class _Queue:
    requests: deque[Request] = field(default_factory=deque)
    states: int = 0


class Batcher:
    """Requests of one kind, oldest first, up to ``max_batch_size`` states a batch.

    A batch is due when it is full or its oldest request has waited ``batch_wait_s``.
    States of different shape or dtype never meet: a wrong request fails alone.
    """

    def __init__(self, max_batch_size: int, batch_wait_s: float) -> None:
        self._max_batch_size = max_batch_size
        self._batch_wait_s = batch_wait_s
        self._queues: dict[tuple[Any, ...], _Queue] = {}  # by dtype and shape
        self.states = 0  # queued now

    def add(self, request: Request) -> None:
        kind = (request.states.dtype, request.states.shape[1:])
        queue = self._queues.setdefault(kind, _Queue())
        queue.requests.append(request)
        queue.states += len(request.states)
        self.states += len(request.states)

    def due_at(self) -> float | None:
        """The time at which the next batch is due; None if nothing is queued."""
        return min((self._due_at(q)[0] for q in self._queues.values()), default=None)

    def take(self) -> list[Request]:
        """The requests of the batch that is due first. Something must be queued."""
        kind, queue = min(self._queues.items(), key=lambda item: self._due_at(item[1]))
        batch: list[Request] = []
        size = 0
        while queue.requests:
            size += len(queue.requests[0].states)
            if batch and size > self._max_batch_size:
                break
            batch.append(queue.requests.popleft())
        taken = sum(len(request.states) for request in batch)
        queue.states -= taken
        self.states -= taken
        if not queue.requests:
            del self._queues[kind]
        return batch

    def _due_at(self, queue: _Queue) -> tuple[float, float]:
        """When, and the arrival of the oldest: it goes first among those due."""
        arrived = queue.requests[0].arrived
        full = queue.states >= self._max_batch_size
        return arrived if full else arrived + self._batch_wait_s, arrived
