"""Data-parallel training for torch: gradients that live in shared memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .context import context

try:
    import torch
except ImportError as error:
    raise ImportError(
        "skate.train.torch needs torch, which is not installed: "
        "pip install 'skate[train]'"
    ) from error


class DistributedOptimizer:
    """An optimizer whose ``step`` uses the gradients' mean over all ranks.

    Every gradient is a view of one flat array in the group's memory, so that a
    reduction is one call and copies nothing. All ranks begin with rank 0's model
    and, as they apply the same gradients, keep the same one.

    Use it as the optimizer it wraps: ``zero_grad``, ``backward``, ``step``.

    Args:
        optimizer: of the parameters of ``model``, already made.
        model: float32 parameters on the CPU.
        sync: ``"allreduce"``, the only way so far.

    Raises:
        ValueError: another ``sync``, or parameters that cannot be bound.
        RuntimeError: used outside of a loop that ``skate.train.run`` runs.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: torch.nn.Module,
        sync: str = "allreduce",
    ) -> None:
        if sync != "allreduce":
            raise ValueError(f'sync={sync!r}; expected "allreduce".')
        self._context = context()
        self.optimizer = optimizer
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        for p in self._parameters:
            if p.dtype != torch.float32 or p.device.type != "cpu":
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} is {p.dtype} on {p.device};"
                    " expected float32 on the CPU."
                )
        size = sum(p.numel() for p in self._parameters)
        self._flat = self._context.empty(size, np.float32)
        self._views: list[torch.Tensor] = []
        self._synchronized = False
        self._bind()
        self._broadcast(model)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Average the gradients over all ranks, then step the optimizer.

        Raises:
            ValueError: with a ``closure``: it would evaluate unreduced gradients.
            RankDiedError: another rank ended.
        """
        if closure is not None:
            raise ValueError("step(closure) is not possible: call backward, then step.")
        if not self._synchronized:
            self.synchronize()
        self._synchronized = False
        return self.optimizer.step()

    def synchronize(self) -> None:
        """Average the gradients now, to clip them (say) before :meth:`step`."""
        for p, view in zip(self._parameters, self._views, strict=True):
            if p.grad is not view:  # someone set it, or set it to None
                view.zero_() if p.grad is None else view.copy_(p.grad)
                p.grad = view
        self._context.allreduce(self._flat, op="mean")
        self._synchronized = True

    def zero_grad(self) -> None:
        """Set every gradient to zero, in one pass, and keep it in shared memory."""
        self._flat.fill(0.0)
        for p, view in zip(self._parameters, self._views, strict=True):
            p.grad = view

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)

    def _bind(self) -> None:
        start = 0
        for p in self._parameters:
            part = self._flat[start : start + p.numel()]
            self._views.append(torch.from_numpy(part).view(p.shape))
            start += p.numel()
        self.zero_grad()

    def _broadcast(self, model: torch.nn.Module) -> None:
        """Give every rank the parameters and buffers of rank 0."""
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                array = np.ascontiguousarray(tensor.detach().numpy())
                self._context.broadcast(array)
                tensor.copy_(torch.from_numpy(array).view(tensor.shape))
