"""Ray's collective calls, on groups of ``skate.collective``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import skate
from skate.collective import Group, GroupSpec

from .types import Backend, ReduceOp

_NAMES = {ReduceOp.SUM: "sum", ReduceOp.MIN: "min", ReduceOp.MAX: "max"}


class _Member:
    """What an actor has of a group that it joined."""

    def __init__(self, name: str, world_size: int, rank: int) -> None:
        self.name = name
        self.world_size = world_size
        self.rank = rank
        self.group = GroupSpec(f"ray-{name}", world_size).join(rank)
        self._pairs: dict[int, Group] = {}

    def pair(self, other: int) -> tuple[Group, int]:
        """A group with one other rank alone, and this one's place in it."""
        self.check_rank(other)
        if other == self.rank:
            raise RuntimeError(f"rank {other} is this process itself.")
        place = int(self.rank > other)
        if other not in self._pairs:
            low, high = sorted((self.rank, other))
            spec = GroupSpec(f"ray-{self.name}-{low}-{high}", 2)
            self._pairs[other] = spec.join(place)
        return self._pairs[other], place

    def check_rank(self, rank: int) -> None:
        if not 0 <= rank < self.world_size:
            raise ValueError(
                f"rank={rank!r}: group {self.name!r} has ranks 0 to "
                f"{self.world_size - 1}."
            )

    def close(self) -> None:
        for group in (self.group, *self._pairs.values()):
            group.close()


# By actor, because all of them are one process on the inline engine.
_members: dict[tuple[str | None, str], _Member] = {}


def _key(group_name: str) -> tuple[str | None, str]:
    return skate.get_runtime_context().get_actor_id(), group_name


def _member(group_name: str) -> _Member:
    found = _members.get(_key(group_name))
    if found is None:
        raise RuntimeError(
            f"the collective group {group_name!r} is not initialized here: call "
            "init_collective_group in each rank, or create_collective_group."
        )
    return found


def nccl_available() -> bool:
    """False: arrays are in the memory of CPUs."""
    return is_backend_available("NCCL")


def gloo_available() -> bool:
    """True: skate's shared memory stands for it."""
    return is_backend_available("GLOO")


def is_backend_available(backend: str) -> bool:
    """Whether the backend's kind of array can be used."""
    return backend.upper() == Backend.GLOO


def init_collective_group(
    world_size: int,
    rank: int,
    backend: str = Backend.NCCL,
    group_name: str = "default",
    gloo_timeout: int = 30000,
) -> None:
    """Join ``group_name`` as ``rank``; returns when every rank has joined."""
    Backend(backend)
    if not group_name:
        raise ValueError("group_name must be a string that is not empty.")
    if _key(group_name) in _members:
        raise RuntimeError(f"the group {group_name!r} is initialized here already.")
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank={rank!r} is not in a group of {world_size!r}.")
    _members[_key(group_name)] = _Member(group_name, world_size, rank)


def create_collective_group(
    actors: Sequence[Any],
    world_size: int,
    ranks: Sequence[int],
    backend: str = Backend.NCCL,
    group_name: str = "default",
    gloo_timeout: int = 30000,
) -> None:
    """Have ``actors`` join ``group_name``, each with its rank, before later calls."""
    Backend(backend)
    if len(ranks) != len(actors) or len(actors) != world_size:
        raise RuntimeError(
            f"{len(actors)} actors and {len(ranks)} ranks for a group of {world_size}: "
            "each actor needs one rank."
        )
    if set(ranks) != set(range(world_size)):
        raise RuntimeError(f"ranks must be 0 to {world_size - 1}, not {list(ranks)!r}.")
    for actor, rank in zip(actors, ranks, strict=True):
        actor.__ray_call__.remote(_join, world_size, rank, backend, group_name)


def _join(actor: Any, *arguments: Any) -> None:
    init_collective_group(*arguments)


def destroy_collective_group(group_name: str = "default") -> None:
    """Leave the group; nothing happens if it was not joined here."""
    member = _members.pop(_key(group_name), None)
    if member is not None:
        member.close()


def is_group_initialized(group_name: str = "default") -> bool:
    """True if this actor has joined the group."""
    return _key(group_name) in _members


def get_rank(group_name: str = "default") -> int:
    """The rank of this actor; -1 if it has not joined."""
    member = _members.get(_key(group_name))
    return -1 if member is None else member.rank


def get_collective_group_size(group_name: str = "default") -> int:
    """How many ranks there are; -1 if this actor has not joined."""
    member = _members.get(_key(group_name))
    return -1 if member is None else member.world_size


def barrier(group_name: str = "default") -> None:
    """Wait until every rank has come here."""
    _member(group_name).group.barrier()


def allreduce(
    tensor: Any, group_name: str = "default", op: ReduceOp = ReduceOp.SUM
) -> None:
    """Reduce ``tensor`` over all ranks, into ``tensor`` of each."""
    member = _member(group_name)
    _store(tensor, _reduced(member, _array(tensor), op))


def reduce(
    tensor: Any,
    dst_rank: int = 0,
    group_name: str = "default",
    op: ReduceOp = ReduceOp.SUM,
) -> None:
    """Reduce ``tensor`` over all ranks, into that of ``dst_rank``."""
    member = _member(group_name)
    member.check_rank(dst_rank)
    result = _reduced(member, _array(tensor), op)
    if member.rank == dst_rank:
        _store(tensor, result)


def broadcast(tensor: Any, src_rank: int = 0, group_name: str = "default") -> None:
    """Copy ``tensor`` of ``src_rank`` into that of all ranks."""
    member = _member(group_name)
    member.check_rank(src_rank)
    _store(tensor, member.group.broadcast(_copy(tensor), src_rank))


def allgather(tensor_list: list[Any], tensor: Any, group_name: str = "default") -> None:
    """Copy ``tensor`` of every rank into ``tensor_list``, in the order of ranks."""
    member = _member(group_name)
    _check_list(tensor_list, member)
    for target, value in zip(
        tensor_list, _gathered(member, _array(tensor)), strict=True
    ):
        _store(target, value)


def reducescatter(
    tensor: Any,
    tensor_list: list[Any],
    group_name: str = "default",
    op: ReduceOp = ReduceOp.SUM,
) -> None:
    """Reduce ``tensor_list`` over all ranks; each gets the item of its own rank."""
    member = _member(group_name)
    _check_list(tensor_list, member)
    stacked = np.stack([_array(item) for item in tensor_list])
    _store(tensor, _reduced(member, stacked, op)[member.rank])


def send(tensor: Any, dst_rank: int, group_name: str = "default") -> None:
    """Give ``tensor`` to ``dst_rank``, which calls ``recv``."""
    group, place = _member(group_name).pair(dst_rank)
    group.broadcast(_copy(tensor), place)


def recv(tensor: Any, src_rank: int, group_name: str = "default") -> None:
    """Fill ``tensor`` with what ``src_rank`` sends."""
    group, place = _member(group_name).pair(src_rank)
    _store(tensor, group.broadcast(_copy(tensor), 1 - place))


def _reduced(member: _Member, array: np.ndarray, op: ReduceOp) -> np.ndarray:
    if op is ReduceOp.PRODUCT:
        product: np.ndarray = np.prod(_gathered(member, array), axis=0)
        return product.astype(array.dtype, copy=False)
    total = np.array(array, order="C")
    member.group.allreduce(total, _NAMES[op])
    return total


def _gathered(member: _Member, array: np.ndarray) -> list[np.ndarray]:
    return [
        member.group.broadcast(np.array(array, order="C"), rank)
        for rank in range(member.world_size)
    ]


def _array(tensor: Any) -> np.ndarray:
    """The memory of a NumPy array, or of a torch CPU tensor."""
    if isinstance(tensor, np.ndarray):
        return tensor
    if hasattr(tensor, "detach") and hasattr(tensor, "numpy"):
        shared: np.ndarray = tensor.detach().numpy()
        return shared
    raise TypeError(
        f"collective calls take NumPy arrays and torch CPU tensors, not {type(tensor)}."
    )


def _copy(tensor: Any) -> np.ndarray:
    return np.array(_array(tensor), order="C")


def _store(tensor: Any, value: np.ndarray) -> None:
    _array(tensor)[...] = value


def _check_list(tensors: list[Any], member: _Member) -> None:
    if not isinstance(tensors, list) or len(tensors) != member.world_size:
        raise RuntimeError(
            f"a list of {member.world_size} tensors is needed, one for each rank."
        )
