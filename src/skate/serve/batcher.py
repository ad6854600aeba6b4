"""When small requests become a batch. Pure: the caller supplies the time."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]  # any dtype: a model decides what its states are


@dataclass(slots=True, eq=False)
class Request:
    """States of one caller, ``(n, ...)`` each, and where the answer goes."""

    leaves: list[Array]
    size: int
    model_id: str
    kind: tuple[Any, ...]  # requests of one kind to one model may share a batch
    answer: Any  # a ReceivedCall in the replica; whatever a test likes
    arrived: float  # seconds, on the caller's clock
    deadline: float | None = None
    min_version: int = 0
    client: Hashable = None  # of a recurrent model: its memory is used
    reset: Any = False  # the rows of its memory that begin anew: all, none, or a mask


@dataclass(slots=True, eq=False)
class _Queue:
    requests: deque[Request] = field(default_factory=deque)
    states: int = 0


class Batcher:
    """Requests of each kind, oldest first, up to ``max_batch_size`` states a batch.

    A batch is due when it is full or its oldest request has waited ``batch_wait_s``.
    Two requests of one client never meet: the second needs what the first leaves.
    """

    def __init__(self, max_batch_size: int, batch_wait_s: float) -> None:
        self._max_batch_size = max_batch_size
        self._batch_wait_s = batch_wait_s
        self._queues: dict[Hashable, _Queue] = {}
        self.states = 0  # queued now

    def add(self, request: Request) -> None:
        key = request.model_id, request.kind
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue()
        queue.requests.append(request)
        queue.states += request.size
        self.states += request.size

    def due_at(self) -> float | None:
        """The time at which the next batch is due; None if nothing is queued."""
        return min((self._due_at(q)[0] for q in self._queues.values()), default=None)

    def take(self, now: float) -> list[Request]:
        """The requests of the batch that is due first. Something must be queued."""
        key, queue = min(self._queues.items(), key=lambda item: self._due_at(item[1]))
        oldest = queue.requests[0]
        full = None
        if oldest.arrived + self._batch_wait_s > now:
            full = self._full_request(queue)
        if full is not None:
            queue.requests.remove(full)
            batch = [full]
        else:
            batch = self._together(queue)
        taken = sum(request.size for request in batch)
        queue.states -= taken
        self.states -= taken
        if not queue.requests:
            del self._queues[key]
        return batch

    def _full_request(self, queue: _Queue) -> Request | None:
        """One that is a batch by itself: it need not wait until the others are due."""
        for request in queue.requests:
            if request.size >= self._max_batch_size and request.client is None:
                return request
        return None

    def _together(self, queue: _Queue) -> list[Request]:
        batch: list[Request] = []
        clients: set[Hashable] = set()
        size = 0
        while queue.requests:
            first = queue.requests[0]
            size += first.size
            if batch and (size > self._max_batch_size or first.client in clients):
                break
            if first.client is not None:
                clients.add(first.client)
            batch.append(queue.requests.popleft())
        return batch

    def _due_at(self, queue: _Queue) -> tuple[float, float]:
        """When, and the arrival of the oldest: it goes first among those due."""
        arrived = queue.requests[0].arrived
        full = queue.states >= self._max_batch_size
        return arrived if full else arrived + self._batch_wait_s, arrived
