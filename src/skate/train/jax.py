"""Data-parallel training for JAX: reductions of pytrees, inside of ``jit`` and out.

Outside, arrays are read in place (DLPack) and copied into the group's memory; inside,
an ordered callback does the same while the compiled function waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from .context import Context, context
from .tree import Array

try:
    import jax
    import jax.numpy as jnp
    from jax.experimental import io_callback
except ImportError as error:
    raise ImportError(
        "skate.train.jax needs JAX, which is not installed: pip install 'skate[jax]'"
    ) from error

Tree = Any  # a pytree of JAX arrays

_Key = tuple[tuple[tuple[int, ...], Any], ...]
_buffers: WeakKeyDictionary[Context, dict[_Key, tuple[list[Array], list[Array]]]] = (
    WeakKeyDictionary()
)


def allreduce(tree: Tree, op: str = "mean") -> Tree:
    """The reduction over all ranks of every array of a pytree, in one call each dtype.

    Works in ``jit``, too, on engines whose ranks are processes.

    Args:
        tree: alike on every rank.
        op: ``"mean"``, ``"sum"``, ``"max"`` or ``"min"``.

    Raises:
        ShapeMismatchError: the trees are unlike.
        RankDiedError: another rank ended.
        RuntimeError: used outside of a loop that ``skate.train.run`` runs.
    """
    rank = context()

    def reduce(memory: Sequence[Array]) -> None:
        for flat in memory:
            rank.allreduce(flat, op)

    return _through_memory(tree, rank, reduce)


def broadcast(tree: Tree, root: int = 0) -> Tree:
    """The pytree of rank ``root``, on every rank."""
    rank = context()

    def send(memory: Sequence[Array]) -> None:
        for flat in memory:
            rank.broadcast(flat, root)

    return _through_memory(tree, rank, send)


def value_and_grad(
    function: Callable[..., Any], argnums: Any = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """``jax.value_and_grad`` of the mean of ``function`` over all ranks.

    The value, and the gradients, are means over the ranks; what ``has_aux`` returns
    stays the rank's own.
    """
    local = jax.value_and_grad(function, argnums, has_aux=has_aux)

    @wraps(function)
    def together(*args: Any, **kwargs: Any) -> Any:
        value, gradients = local(*args, **kwargs)
        if has_aux:
            (value, aux) = value
            value, gradients = allreduce((value, gradients))
            return (value, aux), gradients
        return allreduce((value, gradients))

    return together


def _through_memory(
    tree: Tree, rank: Context, work: Callable[[Sequence[Array]], None]
) -> Tree:
    leaves, form = jax.tree_util.tree_flatten(tree)
    arrays = [jnp.asarray(leaf) for leaf in leaves]

    def move(*values: Any) -> list[Array]:
        views, memory = _memory_for(rank, values)
        for view, value in zip(views, values, strict=True):
            np.copyto(view, np.asarray(value))
        work(memory)
        return views

    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        kinds = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
        # Copies: the memory is written anew by the next call.
        found = io_callback(
            lambda *values: [np.array(view) for view in move(*values)],
            kinds,
            *arrays,
            ordered=True,
        )
    else:
        found = [jnp.array(view, copy=True) for view in move(*arrays)]
        jax.block_until_ready(found)
    return jax.tree_util.tree_unflatten(form, found)


def _memory_for(
    rank: Context, values: Sequence[Any]
) -> tuple[list[Array], list[Array]]:
    """A view for each array, and the flat arrays of the group that they lie in."""
    key: _Key = tuple((tuple(v.shape), np.dtype(v.dtype)) for v in values)
    known = _buffers.setdefault(rank, {})
    if key not in known:
        sizes: dict[Any, int] = {}
        places = []
        for shape, dtype in key:
            count = int(np.prod(shape, dtype=np.int64))
            places.append((dtype, sizes.get(dtype, 0), count, shape))
            sizes[dtype] = sizes.get(dtype, 0) + count
        flats = {dtype: rank.empty(size, dtype) for dtype, size in sizes.items()}
        views = [
            flats[dtype][start : start + count].reshape(shape)
            for dtype, start, count, shape in places
        ]
        known[key] = views, list(flats.values())
    return known[key]
