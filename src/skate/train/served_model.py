"""A torch model whose weights come from a parameter server, and its gradients go there.

Each gradient is copied into the store by a hook, while it is in the cache, and freed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda import SideCopier, TorchDevice
from .server_worker import ServerWorker
from .tree import as_tensor

try:
    import torch
except ImportError as error:
    raise ImportError(
        "skate.train.served_model needs torch, which is not installed: "
        "pip install 'skate[train]'"
    ) from error


def parameters_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that are trained, by name: what to make the server with."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


class ServedModel:
    """Binds ``model`` to a worker of a server made with ``parameters_of(model)``.

    From then on its parameters are the server's, mapped: code that writes to them in
    place ends the process. Backward may run several times before a ``step``::

        served = ServedModel(server.join(), model)
        for x, y in batches:
            loss(model(x), y).backward()
            served.step()

    Args:
        worker: what ``server.join()`` gave.
        model: float parameters on the CPU, or on CUDA.
        overlap: send the gradient of a shard when backward has made the last of its
            arrays, instead of in ``step``. Backward then runs once a step. It pays
            where a core is idle during backward.
    """

    def __init__(
        self, worker: ServerWorker, model: torch.nn.Module, *, overlap: bool = False
    ) -> None:
        self.worker = worker
        self._layout = worker.layout
        self._parameters = list(parameters_of(model).values())
        self._overlap = overlap
        self._filled: set[int] = set()
        self._left = self._all_left()
        self._sent: set[int] = set()
        cuda = any(p.device.type == "cuda" for p in self._parameters)
        self._copier = SideCopier(TorchDevice()) if cuda else None
        self._set_weights(worker.pull_blocks())
        for number, p in enumerate(self._parameters):
            parameter: Any = p  # the method that follows has no types
            parameter.register_post_accumulate_grad_hook(self._hook(number))

    def step(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Send the gradients, wait as the server's mode says, take the new weights.

        Args:
            optimizer: of the model's parameters, if the server has none and only adds
                up: it steps on the gradients that the server gives back.

        Raises:
            ValueError: one of the two has an optimizer, and not both or neither.
        """
        if (optimizer is None) == self.worker.adds_up:
            raise ValueError(
                "step(optimizer) is for a server with optimizer=None, step() for one "
                "with an optimizer."
            )
        for number in range(len(self._parameters)):
            if number not in self._filled:
                self._fill(number, None)
        for shard in range(len(self._layout.parts)):
            if shard not in self._sent:
                self._send(shard)
        self._filled.clear()
        self._sent.clear()
        self._left = self._all_left()
        blocks = self.worker.pull_blocks()
        if not self.worker.adds_up:
            self._set_weights(blocks)
            return
        assert optimizer is not None
        for number, p in enumerate(self._parameters):
            p.grad = as_tensor(self._layout.leaf_in(number, blocks)).to(p.device)
        optimizer.step()
        for p in self._parameters:
            p.grad = None

    def _all_left(self) -> list[int]:
        return [len(part.pieces) for part in self._layout.parts]

    def _hook(self, number: int) -> Any:
        def take(p: torch.Tensor) -> None:
            self._fill(number, p.grad)
            p.grad = None
            if self._overlap:
                self._send_complete(number)

        return take

    @torch.no_grad()
    def _fill(self, number: int, gradient: torch.Tensor | None) -> None:
        flat = None if gradient is None else gradient.reshape(-1)
        first = number not in self._filled
        self._filled.add(number)
        for shard, piece in self._layout.pieces_of[number]:
            block = self.worker.buffers(shard)[piece.block]
            memory = block[piece.offset : piece.end]
            if flat is None:
                memory.fill(0)
                continue
            start = piece.start * piece.row_size
            part = flat[start : start + piece.size]
            if self._copier is not None and first:
                self._copier.lock(block)
                self._copier.copy(part, memory)
            elif first:
                torch.from_numpy(memory).copy_(part)
            else:
                if self._copier is not None:
                    self._copier.wait()
                torch.from_numpy(memory).add_(part.cpu())

    def _send_complete(self, number: int) -> None:
        for shard, _ in self._layout.pieces_of[number]:
            self._left[shard] -= 1
            if not self._left[shard]:
                self._send(shard)
                self._sent.add(shard)

    def _send(self, shard: int) -> None:
        if self._copier is not None:
            self._copier.wait()
        self.worker.push_shard(shard)

    def _set_weights(self, blocks: list[list[np.ndarray]]) -> None:
        for number, p in enumerate(self._parameters):
            weight = as_tensor(self._layout.leaf_in(number, blocks))
            # An optimizer of this rank's own changes its weights in place.
            p.data = (
                weight.to(p.device, copy=True)
                if self.worker.adds_up
                else weight.to(p.device)
            )
