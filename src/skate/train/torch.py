"""Data-parallel training for torch: gradients and weights in shared memory."""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
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

from skate.collective import Group, Handle

from .gradients import Gradients, Memory, is_dense
from .sharded import ELEMENTWISE, ShardedOptimizer

_SYNC = ("allreduce", "parameter_server")
_COMPRESSION = {None: None, "fp16": torch.float16, "bf16": torch.bfloat16}
_WARM_UP = 2  # steps before a trial, which touch memory for the first time
_TRIAL = 4  # steps of each way that overlap="auto" measures


class DistributedOptimizer(torch.optim.Optimizer):
    """An optimizer whose step is the same on every rank, from all ranks' gradients.

    Use it as the optimizer it wraps. All ranks begin with rank 0's parameters and
    buffers, and have the same parameters, to the bit, after every step.

    With ``sync="allreduce"``, ``p.grad`` is the mean over all ranks when ``backward``
    returns: clip it, look at it or scale it with any code of torch's. With
    ``sync="parameter_server"`` the gradients are averaged within ``step`` alone, which
    is quicker, and ``p.grad`` is of no use after ``backward``: clip with
    :meth:`clip_grad_norm_`.

    Where ranks share memory and the optimizer treats elements alike (SGD, Adam and the
    like), the parameters are in memory that all ranks map, and each rank updates its
    share of them. What changes parameters otherwise (initialisation, a projection) must
    then do so on one rank, between two barriers.

    Args:
        optimizer: of parameters of ``model``, already made.
        model: on the CPU; its parameters are of a floating dtype.
        sync: see above.
        bucket_bytes: how much is reduced at once while backward goes on.
        compression: ``"fp16"`` or ``"bf16"`` casts gradients for the way, which pays
            between machines. With ``sync="allreduce"`` only.
        overlap: reduce while backward goes on: True, False, or ``"auto"``, which
            measures both ways in the first steps and says which one it took.
        shard: whether ranks share weights and step, as above. ``"auto"`` says when an
            optimizer is not known to allow it.
        check_nan: raise on every rank if a gradient has a NaN, with rank and parameter.

    Raises:
        ValueError: an option, or a parameter that cannot be used.
        RuntimeError: used outside of a loop that ``skate.train.run`` runs.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: torch.nn.Module,
        sync: str = "allreduce",
        *,
        bucket_bytes: int = 8 << 20,
        compression: str | None = None,
        overlap: bool | str = "auto",
        shard: bool | str = "auto",
        check_nan: bool = False,
    ) -> None:
        _check_options(sync, bucket_bytes, compression, overlap, shard)
        group = context().group
        parameters = [p for g in optimizer.param_groups for p in g["params"]]
        names = _names(parameters, model)
        _check_parameters(parameters, names)
        super().__init__(parameters, {})
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.defaults = optimizer.defaults
        self.state = optimizer.state
        self._group = group
        self._check_nan = check_nan
        self._by_server = sync == "parameter_server"
        self._syncing = True  # not in no_sync()
        self._averaged = False  # the gradients are the mean
        self._queued = False  # a callback for the end of this backward
        self._used: Any = None  # which parameters have a gradient on some rank
        self._scale: float | None = None  # of averaged pieces; with a server
        alone = group.world_size == 1
        wants = _wants_shards(optimizer, shard, group)
        self._gradients = Gradients(
            group,
            parameters,
            names,
            bucket_bytes=bucket_bytes,
            compression=_COMPRESSION[compression],
            share=not alone and compression is None,
        )
        self._number = {id(p): n for n, p in enumerate(parameters)}
        _broadcast(model, group)
        self._shards: ShardedOptimizer | None = None
        if not alone and wants and self._gradients.shared:
            self._shards = ShardedOptimizer(optimizer, self._gradients, group)
        elif shard is True and not alone:
            raise ValueError(
                "shard=True: the ranks of this run share no memory, or the gradients "
                "are compressed. Leave shard out."
            )
        if self._by_server and self._shards is None and not alone:
            raise ValueError(
                'sync="parameter_server" needs ranks that share memory, and an '
                'optimizer that treats elements alike. Use sync="allreduce", or '
                "skate.train.ParameterServer."
            )
        self._ways = _Ways(group, self._gradients, overlap, self._by_server)
        self._overlapped = _Overlapped(self._gradients)
        if not alone:
            for p in parameters:
                p.register_post_accumulate_grad_hook(self._on_gradient)

    # backward -------------------------------------------------------------------------

    def _on_gradient(self, p: torch.Tensor) -> None:
        """``p.grad`` has been made, or added to; it is in the cache."""
        number = self._number[id(p)]
        if self._by_server:
            self._averaged = False
            self._gradients.put_away(number)
            return
        if not self._syncing:
            return
        if not self._queued:
            self._queued = True
            self._averaged = False
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._on_backward_end)
        if self._ways.overlaps:
            self._gradients.to_bucket(number)
            self._overlapped.arrived(number)
        else:
            self._gradients.keep(number)

    def _on_backward_end(self) -> None:
        self._queued = False
        self.synchronize()

    def synchronize(self) -> None:
        """Average the gradients now, if ``backward`` has not done it.

        After backward passes in :meth:`no_sync` alone, say.
        """
        if self._averaged or self._group.world_size == 1 or self._by_server:
            return
        self._averaged = True
        if self._ways.in_place and not self._ways.overlaps:
            self._used = self._gradients.average_in_place(self._check_nan)
        else:
            self._overlapped.finish()
            self._used = self._gradients.finish_buckets(self._check_nan)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Let gradients add up on each rank; the next backward outside averages."""
        before = self._syncing
        self._syncing = False
        try:
            yield
        finally:
            self._syncing = before

    # step -----------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the optimizer with the mean of all ranks' gradients.

        Raises:
            RankDiedError: another rank ended.
            FloatingPointError: there is a NaN, and ``check_nan``.
        """
        if self._shards is None:
            if closure is None:
                self.synchronize()
            result = self.optimizer.step(closure)
        else:
            result = None
            if closure is not None:
                with torch.enable_grad():
                    result = closure()
            self._step_shards(self._shards)
        self._averaged = False
        self._ways.stepped()
        return result

    def _step_shards(self, shards: ShardedOptimizer) -> None:
        if not self._by_server:
            self.synchronize()
            shards.step_averaged(self._used)
            return
        if self._scale is None:
            self._used = self._gradients.gather(self._check_nan)
            shards.step_summing(self._used)
        else:
            shards.step_with(self._used, self._scale)
            self._scale = None
        self._gradients.forget()

    def clip_grad_norm_(self, max_norm: float) -> float:
        """Scale the mean gradients so that their norm is at most ``max_norm``.

        Between ``backward`` and ``step``, on every rank.

        Returns:
            The norm over all parameters, before.
        """
        if not self._by_server or self._shards is None:
            self.synchronize()
            parameters = [place.parameter for place in self._gradients.places]
            return float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
        self._used = self._gradients.gather(self._check_nan)
        with torch.no_grad():
            norm = self._shards.average(self._used)
        self._scale = min(1.0, max_norm / (norm + 1e-6))
        return norm

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop, or set to zero, the gradients made so far."""
        if self._by_server:
            self._gradients.forget()
            self._scale = None
        super().zero_grad(set_to_none)

    # state ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The full state, as the wrapped optimizer alone would have it.

        On any rank, between its steps: the others need not call it.
        """
        if self._shards is not None:
            return self._shards.state_dict()
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a full state, on every rank."""
        if self._shards is not None:
            self._shards.load_state_dict(state_dict)
        else:
            self.optimizer.load_state_dict(state_dict)
        self.param_groups = self.optimizer.param_groups
        self.state = self.optimizer.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Not after construction: the memory of all gradients is laid out then."""
        if hasattr(self, "_gradients"):
            raise RuntimeError(
                "parameters cannot be added to a DistributedOptimizer: add them to the "
                "optimizer before, frozen ones too, or make a new one."
            )
        super().add_param_group(param_group)

    @property
    def choice(self) -> str:
        """How gradients and steps are made, and why."""
        if self._group.world_size == 1:
            return "one rank: nothing is exchanged"
        step = "replicated" if self._shards is None else "sharded, with shared weights"
        return f"{self._ways.text}; step: {step}"

    def __repr__(self) -> str:
        return f"DistributedOptimizer({self.choice}; {self.optimizer!r})"


class _Overlapped:
    """Buckets that are reduced as soon as they are full, always in the same order."""

    def __init__(self, gradients: Gradients) -> None:
        self._gradients = gradients
        self._order = [
            (memory, number)
            for memory in gradients.memories
            for number in range(len(memory.layout.buckets))
        ]
        self._bucket_of: dict[int, int] = {}
        for index, (memory, number) in enumerate(self._order):
            bucket = memory.layout.buckets[number]
            for slot in memory.layout.slots[bucket.first : bucket.last]:
                self._bucket_of[memory.members[slot.parameter]] = index
        self._reset()

    def _reset(self) -> None:
        self._missing = [
            memory.layout.buckets[n].last - memory.layout.buckets[n].first
            for memory, n in self._order
        ]
        self._seen: set[int] = set()
        self._started: list[tuple[Memory, int, list[Handle]]] = []

    def arrived(self, parameter: int) -> None:
        """A gradient is in its bucket."""
        if parameter in self._seen:
            return
        self._seen.add(parameter)
        self._missing[self._bucket_of[parameter]] -= 1
        while (
            len(self._started) < len(self._order)
            and self._missing[len(self._started)] == 0
        ):
            self._start()

    def _start(self) -> None:
        memory, number = self._order[len(self._started)]
        handles = self._gradients.start_bucket(memory, number)
        self._started.append((memory, number, handles))

    def finish(self) -> None:
        """Reduce the others, whose parameters have no gradient here, and wait."""
        while len(self._started) < len(self._order):
            self._gradients.fill_bucket(*self._order[len(self._started)])
            self._start()
        for started in self._started:
            self._gradients.end_bucket(*started)
        self._reset()


class _Ways:
    """Whether to reduce during backward: as told, or as measured in the first steps."""

    def __init__(
        self, group: Group, gradients: Gradients, overlap: bool | str, by_server: bool
    ) -> None:
        self._group = group
        self._steps = 0
        self._last = 0.0
        self._took: dict[bool, list[float]] = {False: [], True: []}
        self.in_place = gradients.shared
        self.measures = (
            overlap == "auto"
            and group.background
            and group.world_size > 1
            and not by_server
        )
        self.overlaps = overlap is True and not by_server
        if by_server:
            self.text = "gradients: summed within the step"
        else:
            self.text = f"gradients: {self._describe()}"

    def _describe(self) -> str:
        if self.overlaps:
            return "reduced in buckets during backward"
        place = "in place " if self.in_place else ""
        return f"reduced {place}at the end of backward"

    def stepped(self) -> None:
        """A step has ended: count it to the way that it went."""
        if not self.measures:
            return
        now = time.perf_counter()
        if self._steps % (_WARM_UP + _TRIAL) >= _WARM_UP:
            self._took[self.overlaps].append(now - self._last)
        self._steps += 1
        self._last = now
        if self._steps == _WARM_UP + _TRIAL:
            self.overlaps = True
        elif self._steps == 2 * (_WARM_UP + _TRIAL):
            self._choose()

    def _choose(self) -> None:
        # The slowest rank decides: all wait for it, and all must choose alike.
        medians = np.array(
            [statistics.median(self._took[way]) for way in (False, True)]
        )
        self._group.allreduce(medians, "max")
        self.measures = False
        self.overlaps = bool(medians[1] < medians[0])
        self.text = (
            f"gradients: {self._describe()}, as measured: {medians[0] * 1e3:.1f} ms a "
            f"step at the end of backward, {medians[1] * 1e3:.1f} ms during it"
        )
        if self._group.rank == 0:
            print(f"skate.train: {self.text}", file=sys.stderr, flush=True)


def _check_options(
    sync: str,
    bucket_bytes: int,
    compression: str | None,
    overlap: bool | str,
    shard: bool | str,
) -> None:
    if sync not in _SYNC:
        raise ValueError(f'sync={sync!r}; expected "allreduce" or "parameter_server".')
    if compression not in _COMPRESSION:
        raise ValueError(f'compression={compression!r}; expected "fp16" or "bf16".')
    if compression is not None and sync != "allreduce":
        raise ValueError(f'compression={compression!r} needs sync="allreduce".')
    if bucket_bytes < 1:
        raise ValueError(f"bucket_bytes={bucket_bytes!r}; expected at least 1.")
    for name, value in (("overlap", overlap), ("shard", shard)):
        if value not in (True, False, "auto"):
            raise ValueError(f'{name}={value!r}; expected True, False or "auto".')


def _names(parameters: list[torch.nn.Parameter], model: torch.nn.Module) -> list[str]:
    known = {id(p): name for name, p in model.named_parameters()}
    return [known.get(id(p), f"parameter {n}") for n, p in enumerate(parameters)]


def _check_parameters(parameters: list[torch.nn.Parameter], names: list[str]) -> None:
    for p, name in zip(parameters, names, strict=True):
        if p.device.type != "cpu" or not p.dtype.is_floating_point or not is_dense(p):
            raise ValueError(
                f"the parameter {name!r} of shape {tuple(p.shape)} is {p.dtype} on "
                f"{p.device}; expected a dense one of a floating dtype on the CPU."
            )


def _wants_shards(
    optimizer: torch.optim.Optimizer, shard: bool | str, group: Group
) -> bool:
    known = type(optimizer) in ELEMENTWISE
    if shard == "auto" and not known and group.rank == 0 and group.world_size > 1:
        print(
            f"skate.train: every rank steps all parameters: {type(optimizer).__name__} "
            "is not known to treat elements alike. If it does, say shard=True.",
            file=sys.stderr,
            flush=True,
        )
    return known if shard == "auto" else bool(shard)


def _broadcast(model: torch.nn.Module, group: Group) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if group.world_size == 1:
        return
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.dtype is torch.bool:  # no number
                group.broadcast(tensor.view(torch.uint8))
            else:
                group.broadcast(tensor.detach())
