"""Gradients of all ranks: where each one's are, and how they become their mean.

Where ranks share memory, the mean is made in place, at the end of backward: a rank owns
a share of the flat array of all gradients. Of the parameters in its share it leaves the
gradients where backward made them; of the others, it copies them to its bucket memory
when they are made, while they are in the cache, and lets backward use the memory again.
Then it sums, for its share, its own gradients and the others' buckets, and writes the
mean to both. Elsewhere, or when backward is overlapped, all gradients are copied to
buckets, and each bucket is one allreduce.

Every sum goes in the order of ranks, by the same kernel: the ways agree to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from skate import kernels
from skate.collective import Group, Handle

from .bucket import Layout, Piece, lay_out

# The arrays of a piece (gradients, weights, state) stay in a shared cache between the
# passes over them, and so few pieces are left that what Python does for each, some 0.1
# ms, does not count. With pieces of 256 KB a summing step took up to twice as long.
PIECE_BYTES = 1 << 20

# torch's dtypes as NumPy has them.
_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: kernels.BFLOAT16,
}


def to_torch(array: Any, dtype: torch.dtype) -> torch.Tensor:
    """A tensor over the memory of ``array``."""
    if dtype is torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(dtype)
    return torch.from_numpy(array)


def to_numpy(tensor: torch.Tensor) -> Any:
    """An array over the memory of ``tensor``, in the kernels' dtypes."""
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(kernels.BFLOAT16)
    return tensor.numpy()


def is_dense(tensor: torch.Tensor) -> bool:
    """True if its elements fill their memory, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def flat_view(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of a dense tensor in the order in which they are in memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


@dataclass
class Memory:
    """The parameters of one dtype, and their gradients' memory on this rank."""

    dtype: torch.dtype
    layout: Layout
    members: list[int]  # parameters, by their numbers among all
    mine: torch.Tensor  # flat
    array: Any  # the same, for collectives
    peers: list[torch.Tensor] | None  # every rank's, where memory is shared
    pieces: list[Piece]  # that this rank owns


@dataclass
class Place:
    """What is known of one parameter."""

    parameter: torch.nn.Parameter
    name: str
    memory: Memory
    slot: int
    view: torch.Tensor  # its part of this rank's bucket memory
    own: bool  # this rank owns all of it


class Gradients:
    """The gradients of ``parameters`` on this rank.

    Args:
        names: of the parameters, for errors.
        compression: a dtype to which buckets are cast for the way; None for none.
        share: use the memory that ranks share, if they do.
    """

    def __init__(
        self,
        group: Group,
        parameters: Sequence[torch.nn.Parameter],
        names: Sequence[str],
        *,
        bucket_bytes: int,
        compression: torch.dtype | None,
        share: bool,
    ) -> None:
        self._group = group
        self._compression = compression
        self.memories: list[Memory] = []
        self.places: list[Place] = [None] * len(parameters)  # type: ignore[list-item]
        by_dtype: dict[torch.dtype, list[int]] = {}
        for number, parameter in enumerate(parameters):
            by_dtype.setdefault(parameter.dtype, []).append(number)
        for dtype, members in by_dtype.items():
            memory = self._allocate(dtype, members, parameters, bucket_bytes, share)
            self.memories.append(memory)
            for number, slot in enumerate(memory.layout.slots):
                index = members[slot.parameter]
                p = parameters[index]
                own = memory.peers is not None and all(
                    piece.owner == group.rank
                    for piece in memory.layout.pieces
                    if piece.slot == number
                )
                view = memory.mine.as_strided(p.shape, p.stride(), slot.start)
                self.places[index] = Place(p, names[index], memory, number, view, own)
        self.shared = all(memory.peers is not None for memory in self.memories)
        self._used = np.zeros(len(parameters), np.uint8)
        self._filled = [False] * len(parameters)  # what put_away has put into buckets

    def _allocate(
        self,
        dtype: torch.dtype,
        members: list[int],
        parameters: Sequence[torch.nn.Parameter],
        bucket_bytes: int,
        share: bool,
    ) -> Memory:
        group = self._group
        layout = lay_out(
            [parameters[number].numel() for number in members],
            world_size=group.world_size,
            bucket_items=max(1, bucket_bytes // dtype.itemsize),
            piece_items=PIECE_BYTES // dtype.itemsize,
        )
        array = group.empty(layout.size, _NUMPY[dtype])
        peers = group.peers(array) if share else None
        pieces = [piece for piece in layout.pieces if piece.owner == group.rank]
        return Memory(
            dtype,
            layout,
            members,
            to_torch(array, dtype),
            array,
            None if peers is None else [to_torch(peer, dtype) for peer in peers],
            pieces,
        )

    # one gradient ---------------------------------------------------------------------

    def keep(self, number: int) -> None:
        """Put a gradient where the mean in place expects it."""
        place = self.places[number]
        gradient = place.parameter.grad
        assert gradient is not None
        if not place.own:
            self.to_bucket(number)
        elif gradient.stride() != place.view.stride():
            self._adopt(place, gradient.detach())

    def to_bucket(self, number: int) -> None:
        """Put a gradient into its bucket, as which it remains visible."""
        place = self.places[number]
        gradient = place.parameter.grad
        assert gradient is not None
        if gradient.data_ptr() != place.view.data_ptr():
            self._adopt(place, gradient)

    def put_away(self, number: int) -> None:
        """Add a gradient to what :meth:`gather` finds; ``p.grad`` is of no use then.

        That of this rank's own share stays where it is, and is added to by backward.
        """
        place = self.places[number]
        gradient = place.parameter.grad
        assert gradient is not None
        if place.own:
            self.keep(number)
            return
        if self._filled[number]:
            place.view.add_(gradient)
        else:
            self._adopt(place, gradient)
            self._filled[number] = True
        place.parameter.grad = None

    def gather(self, check_nan: bool) -> Any:
        """After :meth:`put_away` of all: which parameters have a gradient somewhere."""
        for number, place in enumerate(self.places):
            if self._filled[number]:
                place.parameter.grad = place.view
            elif place.parameter.grad is None:
                place.view.zero_()
        return self.agree(check_nan)

    def forget(self) -> None:
        """Drop all gradients, which were used by a step."""
        self._filled[:] = [False] * len(self._filled)
        for place in self.places:
            place.parameter.grad = None

    def _adopt(self, place: Place, gradient: torch.Tensor) -> None:
        if gradient.layout is not torch.strided:
            raise TypeError(
                f"the gradient of {place.name!r} is sparse. Make its layer with "
                "sparse=False, or use skate.train.ParameterServer, which takes sparse "
                "rows."
            )
        place.view.copy_(gradient)
        place.parameter.grad = place.view

    # all of them ----------------------------------------------------------------------

    def agree(self, check_nan: bool) -> Any:
        """Which parameters have a gradient on some rank: a flag each. A barrier.

        Raises:
            FloatingPointError: on every rank, if there is a NaN and ``check_nan``.
        """
        used = self._used
        for number, place in enumerate(self.places):
            used[number] = place.parameter.grad is not None
            if check_nan and place.parameter.grad is not None:
                used[number] += bool(place.parameter.grad.isnan().any())
        mine = used.copy() if check_nan else used
        self._group.allreduce(used, "max")
        if check_nan and (used == 2).any():
            self._refuse_nan(mine)
        return used

    def _refuse_nan(self, mine: Any) -> None:
        everyones = self._group.allgather(mine)
        found = [
            f"rank {rank}: "
            + ", ".join(self.places[n].name for n in np.flatnonzero(row == 2)[:5])
            for rank, row in enumerate(everyones)
            if (row == 2).any()
        ]
        raise FloatingPointError(
            f"there is a NaN in the gradients of {'; '.join(found)}. No parameter was "
            "changed by this step. torch.autograd.set_detect_anomaly(True) finds the "
            "operation that made it."
        )

    def average_in_place(self, check_nan: bool) -> Any:
        """Make every gradient the mean over ranks, all at once."""
        for number, place in enumerate(self.places):
            if place.parameter.grad is not None:
                self.keep(number)
            else:
                place.view.zero_()  # others may have one
        used = self.agree(check_nan)
        self._adopt_zeros(used)
        for memory in self.memories:
            for _, sources in self.sources(memory, used):
                kernels.reduce(sources, "mean", out=sources)
        self._group.barrier()
        return used

    def sources(self, memory: Memory, used: Any) -> Any:
        """This rank's pieces with the part of every rank's gradient, by rank."""
        assert memory.peers is not None
        peers = [to_numpy(peer) for peer in memory.peers]
        rank = self._group.rank
        slots = memory.layout.slots
        last = -1
        private: Any = None
        for piece in memory.pieces:
            number = memory.members[slots[piece.slot].parameter]
            if not used[number]:
                continue
            if number != last:
                last = number
                place = self.places[number]
                gradient = place.parameter.grad if place.own else None
                # Without a gradient of its own here, its bucket holds zeros.
                private = None if gradient is None else to_numpy(flat_view(gradient))
            sources = [peer[piece.start : piece.end] for peer in peers]
            if private is not None:
                start = slots[piece.slot].start
                sources[rank] = private[piece.start - start : piece.end - start]
            yield piece, sources

    def _adopt_zeros(self, used: Any) -> None:
        """What has no gradient here, but elsewhere, gets the mean like all."""
        for number, place in enumerate(self.places):
            if used[number] and place.parameter.grad is None:
                place.parameter.grad = place.view

    # bucket by bucket -----------------------------------------------------------------

    def start_bucket(self, memory: Memory, number: int) -> list[Handle]:
        """Begin to average one bucket, whose gradients are there."""
        bucket = memory.layout.buckets[number]
        if self._compression is None:
            x = memory.array[bucket.start : bucket.end]
            return [self._group.allreduce(x, "mean", async_op=True)]
        small = memory.mine[bucket.start : bucket.end].to(self._compression)
        return [self._group.allreduce(small, "mean", async_op=True)]

    def end_bucket(self, memory: Memory, number: int, handles: list[Handle]) -> None:
        """Wait until the bucket is averaged."""
        bucket = memory.layout.buckets[number]
        for handle in handles:
            result = handle.wait()
            if self._compression is not None:
                memory.mine[bucket.start : bucket.end].copy_(result)

    def fill_bucket(self, memory: Memory, number: int) -> None:
        """Put into the bucket what is not there; zeros for what has no gradient."""
        bucket = memory.layout.buckets[number]
        for slot in memory.layout.slots[bucket.first : bucket.last]:
            place = self.places[memory.members[slot.parameter]]
            if place.parameter.grad is None:
                place.view.zero_()
            else:
                self.to_bucket(memory.members[slot.parameter])

    def finish_buckets(self, check_nan: bool) -> Any:
        """After the last bucket: who has a gradient, and what was not a number."""
        used = self.agree(check_nan)
        self._adopt_zeros(used)
        return used
