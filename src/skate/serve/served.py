"""One model in a replica: its version, what it takes, and its clients' memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, cast

import numpy as np

from . import tree
from .batcher import Array, Request
from .errors import StatesError, UnknownClientError

# Arrays whose first axis is the batch: one, or a tree of them.
Outputs = Any

_MAX_CLIENTS = 65_536


class Model(Protocol):
    """What can be served.

    ``set_weights(weights)`` is needed for ``Deployment.update``. With
    ``initial_memory(n)``, a tree of arrays of ``n`` rows, a model is recurrent:
    ``evaluate(states, memory)`` then returns the outputs and the next memory.
    """

    def evaluate(self, states: Array, /) -> Outputs:
        """Outputs for ``(B, ...)`` states: arrays whose first axis is B long."""


class Served:
    """A model and what a replica keeps for it."""

    def __init__(self, model: Model, version: int, declared: Hashable) -> None:
        self._model: Any = model  # Any: set_weights and initial_memory are optional
        self.version = version
        self.takes = (
            declared  # the kind of its states; None until it has been given one
        )
        self.is_recurrent = callable(getattr(model, "initial_memory", None))
        # By client, the least recently seen first.
        self._memories: OrderedDict[Hashable, tree.Tree] = OrderedDict()

    @property
    def name(self) -> str:
        return type(self._model).__name__

    def set_weights(self, weights: Any, version: int) -> None:
        """Raises what the model's ``set_weights`` raises; then nothing has changed."""
        if not callable(getattr(self._model, "set_weights", None)):
            raise TypeError(
                f"{self.name} has no set_weights(weights), so its deployment cannot be "
                "updated."
            )
        self._model.set_weights(weights)
        self.version = version

    def check_client(self, request: Request) -> None:
        """Raise ValueError unless the model and the request agree on a memory."""
        if self.is_recurrent and request.client is None:
            raise StatesError(
                f"{self.name} is recurrent: say whose states these are, as in "
                "evaluate(states, client='env-0', reset=True)."
            )
        if not self.is_recurrent and request.client is not None:
            raise StatesError(
                f"client={request.client!r}: {self.name} has no initial_memory(n), so "
                "it keeps nothing for its clients."
            )

    def evaluate(self, structure: tree.Structure, batch: Sequence[Request]) -> Outputs:
        """The outputs for all states of ``batch``, in one call of the model."""
        if len(batch) == 1:
            leaves = batch[0].leaves
        else:
            columns = zip(*(request.leaves for request in batch), strict=True)
            leaves = [np.concatenate(column) for column in columns]
        states = tree.build(structure, leaves)
        if not self.is_recurrent:
            outputs = self._model.evaluate(states)
            self._check(outputs, len(leaves[0]))
            return outputs
        outputs, memory = self._model.evaluate(states, self._recall(batch))
        self._check(outputs, len(leaves[0]))
        self._check(memory, len(leaves[0]))
        parts = split(memory, [request.size for request in batch])
        for request, part in zip(batch, parts, strict=True):
            self._memories[request.client] = part
            self._memories.move_to_end(request.client)
        while len(self._memories) > _MAX_CLIENTS:
            self._memories.popitem(last=False)
        return outputs

    def evaluate_states(self, states: Array) -> Outputs:
        """The same for the states of one request, which are one array."""
        outputs = self._model.evaluate(states)
        if type(outputs) is not np.ndarray or len(outputs) != len(states):
            self._check(outputs, len(states))
        return outputs

    def forget(self, client: Hashable) -> None:
        self._memories.pop(client, None)

    def lacks_memory(self, request: Request) -> UnknownClientError | None:
        """Why a request cannot go on from where its client was."""
        if not self.is_recurrent or np.all(request.reset):
            return None
        known = self._memories.get(request.client)
        if known is None:
            return UnknownClientError(
                f"no memory of client {request.client!r}: it has not begun yet, or its "
                "memory went with a replica that died. Begin (again) with reset=True."
            )
        rows = len(tree.flatten(known)[0][0])
        if rows != request.size:
            return UnknownClientError(
                f"client {request.client!r} has {rows} rows of memory and sent "
                f"{request.size} states. Send as many each time, or begin with "
                "reset=True."
            )
        return None

    def _recall(self, batch: Sequence[Request]) -> tree.Tree:
        parts = [self._memory(request) for request in batch]
        if len(parts) == 1:
            return parts[0]
        columns = zip(*(tree.flatten(part)[0] for part in parts), strict=True)
        joined = [np.concatenate(column) for column in columns]
        return tree.build(tree.flatten(parts[0])[1], joined)

    def _memory(self, request: Request) -> tree.Tree:
        if np.all(request.reset):
            return self._model.initial_memory(request.size)
        memory = self._memories[request.client]
        if not np.any(request.reset):
            return memory
        fresh, structure = tree.flatten(self._model.initial_memory(request.size))
        mask = np.asarray(request.reset, dtype=bool)
        kept = tree.flatten(memory)[0]
        mixed = []
        for old, new in zip(kept, fresh, strict=True):
            rows = np.array(old)
            rows[mask] = np.asarray(new)[mask]
            mixed.append(rows)
        return tree.build(structure, mixed)

    def _check(self, outputs: Outputs, size: int) -> None:
        for array in tree.flatten(outputs)[0]:
            if np.ndim(array) == 0 or len(array) != size:
                raise ValueError(
                    f"{self.name}.evaluate got {size} states and returned an array of "
                    f"shape {np.shape(array)}: the first axis of every output must "
                    "have one entry for each state."
                )


def split(outputs: Outputs, sizes: Sequence[int]) -> list[Outputs]:
    """The part of ``outputs`` that belongs to each caller, in order."""
    leaves, structure = tree.flatten(outputs)
    parts: list[Outputs] = []
    start = 0
    for size in sizes:
        rows = slice(start, start + size)
        parts.append(tree.build(structure, [leaf[rows] for leaf in leaves]))
        start += size
    return parts


def kind_of(structure: tree.Structure, leaves: Sequence[Array]) -> tuple[Any, ...]:
    """What must be the same for states to share a batch."""
    if structure is None:
        return None, leaves[0].dtype, leaves[0].shape[1:]
    return structure, *((leaf.dtype, leaf.shape[1:]) for leaf in leaves)


def describe_kind(kind: Hashable) -> str:
    """For people: ``float32 (n, 84, 84)``."""
    structure, *parts = cast("tuple[Any, ...]", kind)
    if structure is None:
        parts = [tuple(parts)]
    names = [tree.leaf_name(structure, i) for i in range(len(parts))]
    texts = []
    for name, (dtype, shape) in zip(names, parts, strict=True):
        axes = ", ".join(["n", *map(str, shape)])
        texts.append(f"{name + ': ' if name else ''}{dtype} ({axes})")
    return "; ".join(texts)


MakeModel = Callable[..., Model]
