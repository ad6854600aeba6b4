"""One optimizer step for all ranks: each updates its share of the shared weights.

The weights are one array that every rank maps, so what a rank has updated needs no way
back. The optimizer is the user's own class, on pieces of parameters: it must treat
every element alike, wherever it stands. Its state is in memory that ranks share, too:
any rank can put all of it together, without asking the others.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import numpy as np
import torch

from skate import kernels
from skate.collective import Group

from .bucket import Piece
from .gradients import (
    PIECE_BYTES,
    Gradients,
    Memory,
    Place,
    flat_view,
    to_numpy,
    to_torch,
)

# Those that update an element from its own gradient and state alone.
ELEMENTWISE = frozenset(
    {
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.Adamax,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Adagrad,
        torch.optim.Adadelta,
        torch.optim.RMSprop,
        torch.optim.Rprop,
    }
)

_MOST_KEYS_BYTES = 4096


class ShardedOptimizer:
    """The share of ``optimizer`` that this rank has. Its state begins as its.

    Moves the parameters' data into shared memory: those of rank 0, on every rank.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, gradients: Gradients, group: Group
    ) -> None:
        self._group = group
        self._keep: list[Any] = []  # arrays of this rank that others use
        self._whole = optimizer
        self._gradients = gradients
        self._weights = [self._share_weights(memory) for memory in gradients.memories]
        self._number = {
            id(place.parameter): n for n, place in enumerate(gradients.places)
        }
        # Piece by piece: a parameter that is a part of the shared weights.
        self._parts: list[list[tuple[Memory, Piece, torch.nn.Parameter, int]]] = []
        self._inner = self._make_inner()
        self._scratches: dict[torch.dtype, torch.Tensor] = {}
        self._index = {id(memory): i for i, memory in enumerate(gradients.memories)}
        self._place_of = {
            id(memory): {piece: i for i, piece in enumerate(memory.layout.pieces)}
            for memory in gradients.memories
        }
        self._unshared = [part for parts in self._parts for part in parts]
        # By key, and then by memory: every rank's share of it.
        self._tensors: dict[str, list[list[torch.Tensor]]] = {}
        # By key, and then by memory: a number for each piece, of all ranks.
        self._scalars: dict[str, list[torch.Tensor]] = {}
        # By memory: whether a piece has state. Then, what this rank keeps for others.
        self._has = [
            self._share_one(len(memory.layout.pieces), torch.uint8)
            for memory in gradients.memories
        ]
        self._loaded = bool(optimizer.state)
        if self._loaded:
            self._take_over()

    def _share_one(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        """Zeros, which every rank maps: rank 0 has them."""
        empty = torch.empty(0, dtype=dtype).numpy()
        array = self._group.empty(size if self._group.rank == 0 else 0, empty.dtype)
        array[...] = 0
        self._keep.append(array)
        peers = self._group.peers(array)
        assert peers is not None
        self._group.barrier()
        return torch.from_numpy(peers[0])

    def _share_weights(self, memory: Memory) -> torch.Tensor:
        size = memory.layout.size if self._group.rank == 0 else 0
        array = self._group.empty(size, memory.array.dtype)
        peers = self._group.peers(array)
        assert peers is not None
        weights = to_torch(peers[0], memory.dtype)
        for slot in memory.layout.slots:
            p = self._gradients.places[memory.members[slot.parameter]].parameter
            view = weights.as_strided(p.shape, p.stride(), slot.start)
            if self._group.rank == 0:
                view.copy_(p.data)
            p.data = view
        self._keep.append(array)
        self._group.barrier()
        return weights

    def _make_inner(self) -> torch.optim.Optimizer:
        places = self._gradients.places
        groups = []
        for group in self._whole.param_groups:
            parts = []
            for p in group["params"]:
                number = self._number[id(p)]
                parts += self._parts_of(places[number], number)
            self._parts.append(parts)
            groups.append({**group, "params": [part for _, _, part, _ in parts]})
        # As unpickling makes it: a constructor may not take all that it has set.
        inner = object.__new__(type(self._whole))
        inner.__setstate__(
            {
                "defaults": dict(self._whole.defaults),
                "state": defaultdict(dict),
                "param_groups": groups,
            }
        )
        return inner

    def _parts_of(
        self, place: Place, number: int
    ) -> list[tuple[Memory, Piece, torch.nn.Parameter, int]]:
        memory = place.memory
        weights = self._weights[self._gradients.memories.index(memory)]
        return [
            (
                memory,
                piece,
                torch.nn.Parameter(weights[piece.start : piece.end]),
                number,
            )
            for piece in memory.pieces
            if piece.slot == place.slot
        ]

    # stepping -------------------------------------------------------------------------

    def _begin(self) -> None:
        """Nobody reads the weights any more; take over what the user has set."""
        for mine, users in zip(
            self._inner.param_groups, self._whole.param_groups, strict=True
        ):
            mine.update((key, users[key]) for key in users if key != "params")
        self._group.barrier()

    def _end(self) -> None:
        """The weights are those of the next step, on every rank."""
        for parts in self._parts:
            for _, _, part, _ in parts:
                part.grad = None
        if self._loaded:
            self._loaded = False
            self._whole.state.clear()
        # Not only here: what one rank moves, others may want to read.
        new = any(self._inner.state.get(part) for _, _, part, _ in self._unshared)
        flag = np.array([new], np.uint8)
        self._group.allreduce(flag, "max")  # a barrier as well
        if flag[0]:
            self._agree_on_keys()
            self._unshared = [part for part in self._unshared if not self._share(*part)]
            self._group.barrier()

    def step_averaged(self, used: Any) -> None:
        """Step with the gradients that the parameters have, which are the mean."""
        self._begin()
        for parts in self._parts:
            for memory, piece, part, number in parts:
                gradient = self._gradients.places[number].parameter.grad
                if used[number] and gradient is not None:
                    start = memory.layout.slots[piece.slot].start
                    flat = flat_view(gradient.detach())
                    part.grad = flat[piece.start - start : piece.end - start]
        self._inner.step()
        self._end()

    def step_summing(self, used: Any) -> None:
        """Average the gradients of each piece and step with them at once."""
        self._begin()
        groups = self._inner.param_groups
        sources = {
            (id(memory), piece): arrays
            for memory in self._gradients.memories
            for piece, arrays in self._gradients.sources(memory, used)
        }
        try:
            for group, parts in zip(groups, self._parts, strict=True):
                alone = dict(group)
                self._inner.param_groups = [alone]
                for memory, piece, part, number in parts:
                    if used[number]:
                        mean = self._scratch(memory)[: piece.end - piece.start]
                        kernels.reduce(
                            sources[id(memory), piece], "mean", out=to_numpy(mean)
                        )
                        part.grad = mean
                        alone["params"] = [part]
                        self._inner.step()
                        part.grad = None
        finally:
            self._inner.param_groups = groups
        self._end()

    def average(self, used: Any) -> float:
        """Average the gradients of all pieces, for :meth:`step_with`; their norm."""
        squares = 0.0
        for memory in self._gradients.memories:
            for piece, sources in self._gradients.sources(memory, used):
                # Nobody else reads this rank's own share of its bucket memory.
                mean = memory.mine[piece.start : piece.end]
                kernels.reduce(sources, "mean", out=to_numpy(mean))
                squares += (
                    float(torch.linalg.vector_norm(mean, dtype=torch.float64)) ** 2
                )
        total = np.array([squares])
        self._group.allreduce(total)
        return float(np.sqrt(total[0]))

    def step_with(self, used: Any, scale: float) -> None:
        """Step with what :meth:`average` left, times ``scale``."""
        self._begin()
        for parts in self._parts:
            for memory, piece, part, number in parts:
                if used[number]:
                    mean = memory.mine[piece.start : piece.end]
                    part.grad = mean.mul_(scale) if scale != 1.0 else mean
        self._inner.step()
        self._end()

    def _scratch(self, memory: Memory) -> torch.Tensor:
        found = self._scratches.get(memory.dtype)
        if found is None:
            size = PIECE_BYTES // memory.dtype.itemsize
            found = torch.empty(size, dtype=memory.dtype)
            self._scratches[memory.dtype] = found
        return found

    # state ----------------------------------------------------------------------------

    def _agree_on_keys(self) -> None:
        """Make shared memory for the state that any rank's optimizer has."""
        mine = {
            key: str(value.dtype).removeprefix("torch.") if value.dim() == 0 else ""
            for _, _, part, _ in self._unshared
            for key, value in self._inner.state.get(part, {}).items()
            if isinstance(value, torch.Tensor)
        }
        text = np.zeros(_MOST_KEYS_BYTES, np.uint8)
        data = json.dumps(mine).encode()
        text[: len(data)] = np.frombuffer(data, np.uint8)
        keys: dict[str, str] = {}
        for row in self._group.allgather(text):
            keys.update(json.loads(row.tobytes().rstrip(b"\0")))
        memories = self._gradients.memories
        for key in sorted(keys):
            if key in self._tensors or key in self._scalars:
                continue
            if keys[key]:
                dtype = getattr(torch, keys[key])
                self._scalars[key] = [
                    self._share_one(len(memory.layout.pieces), dtype)
                    for memory in memories
                ]
            else:
                self._tensors[key] = [self._share_all(memory) for memory in memories]

    def _share_all(self, memory: Memory) -> list[torch.Tensor]:
        """A share of state for each rank."""
        array = self._group.empty(memory.layout.share, memory.array.dtype)
        self._keep.append(array)
        peers = self._group.peers(array)
        assert peers is not None
        return [to_torch(peer, memory.dtype) for peer in peers]

    def _share(
        self, memory: Memory, piece: Piece, part: torch.nn.Parameter, number: int
    ) -> bool:
        """Move the state of a piece into shared memory; False if it has none yet."""
        state = self._inner.state.get(part)
        if not state:
            return False
        index = self._index[id(memory)]
        place = self._place_of[id(memory)][piece]
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                if value.dim() == 0:
                    target = self._scalars[key][index][place]
                else:
                    target = self._slice(key, index, piece)
                state[key] = target.copy_(value)
        self._has[index][place] = 1
        return True

    def _slice(self, key: str, index: int, piece: Piece) -> torch.Tensor:
        share = self._gradients.memories[index].layout.share
        at = piece.start - piece.owner * share
        return self._tensors[key][index][piece.owner][at : at + piece.end - piece.start]

    def state_dict(self) -> dict[str, Any]:
        """All of it, as the optimizer has it that steps alone."""
        if not self._loaded:
            for place in self._gradients.places:
                state = self._gather(place)
                if state:
                    self._whole.state[place.parameter] = state
        try:
            return self._whole.state_dict()
        finally:
            if not self._loaded:
                self._whole.state.clear()

    def _gather(self, place: Place) -> dict[str, Any]:
        memory = place.memory
        index = self._index[id(memory)]
        start = memory.layout.slots[place.slot].start
        state: dict[str, Any] = {}
        for piece, number in self._place_of[id(memory)].items():
            if piece.slot != place.slot or not self._has[index][number]:
                continue
            for key in self._tensors:
                whole = state.get(key)
                if whole is None:
                    whole = state[key] = torch.empty_like(place.parameter.detach())
                part = self._slice(key, index, piece)
                flat_view(whole)[piece.start - start : piece.end - start] = part
            for key, numbers in self._scalars.items():
                state[key] = numbers[index][number].clone()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of an optimizer that stepped alone; on every rank."""
        self._whole.load_state_dict(state)
        self._loaded = True
        self._take_over()

    def _take_over(self) -> None:
        self._unshared = [part for parts in self._parts for part in parts]
        for memory, piece, part, number in self._unshared:
            place = self._gradients.places[number]
            start = memory.layout.slots[piece.slot].start
            self._inner.state.pop(part, None)
            for key, value in self._whole.state.get(place.parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    value = value.detach()
                    if value.dim() > 0:
                        value = flat_view(value)[
                            piece.start - start : piece.end - start
                        ]
                    value = value.clone()
                self._inner.state[part][key] = value
        for has in self._has:
            has.zero_()
