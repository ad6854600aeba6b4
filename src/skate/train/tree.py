"""Nests of arrays: dicts, lists and tuples, whose leaves are numpy or torch arrays."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]  # any dtype that can be added up
Tree = Any  # an array, or a dict, list, tuple or named tuple of trees, or None


def flatten(tree: Tree, name: str = "params") -> list[tuple[str, Any]]:
    """Every leaf with its path, such as ``params['layer'][0]``; dicts by their order.

    Raises:
        TypeError: a leaf is no array.
    """
    return list(_leaves(tree, name))


def _leaves(tree: Tree, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}[{key!r}]")
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        for field, value in zip(tree._fields, tree, strict=True):
            yield from _leaves(value, f"{path}.{field}")
    elif isinstance(tree, (list, tuple)):
        for i, value in enumerate(tree):
            yield from _leaves(value, f"{path}[{i}]")
    elif tree is not None:
        yield path, tree


def unflatten(like: Tree, leaves: Sequence[Any]) -> Tree:
    """A tree of the form of ``like`` with other leaves, in the order of ``flatten``."""
    rest = iter(leaves)
    made = _rebuild(like, rest)
    assert next(rest, None) is None
    return made


def _rebuild(like: Tree, rest: Iterator[Any]) -> Tree:
    if isinstance(like, dict):
        return {key: _rebuild(value, rest) for key, value in like.items()}
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        return type(like)(*[_rebuild(value, rest) for value in like])
    if isinstance(like, (list, tuple)):
        return type(like)([_rebuild(value, rest) for value in like])
    return None if like is None else next(rest)


def skeleton(tree: Tree) -> Tree:
    """The form of ``tree`` alone: zeros for leaves. Small, and can be pickled."""
    return unflatten(tree, [0] * len(flatten(tree)))


def is_tensor(leaf: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(leaf, torch.Tensor)


def as_array(leaf: Any, path: str) -> Array:
    """``leaf`` as a numpy array: the same memory for numpy, and for torch on the CPU.

    Raises:
        TypeError: it is no array of numbers.
    """
    if is_tensor(leaf):
        leaf = leaf.detach()
        try:
            array: Array = leaf.cpu().numpy()
        except TypeError as error:
            raise TypeError(
                f"{path} is a tensor of {leaf.dtype}, which numpy does not have: keep "
                "the server's parameters in float32, or cast them."
            ) from error
        return array
    array = np.asarray(leaf)
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise TypeError(
            f"{path} is {leaf!r:.60} of dtype {array.dtype}; expected an array of "
            "floats or integers."
        )
    return array


def as_tensor(array: Array) -> Any:
    """A torch tensor in the memory of ``array``, which may be read-only.

    torch does not know such memory: writing to the tensor ends the process.
    """
    import torch

    if array.flags.writeable:
        return torch.from_numpy(array)
    import warnings

    with warnings.catch_warnings():  # that it is not writable is said above
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def differences(found: Tree, expected: Tree, name: str) -> list[str]:
    """How two trees differ in names, shapes and dtypes: a line each; none if equal."""
    ours = {path: _kind(leaf) for path, leaf in flatten(expected, name)}
    theirs = {path: _kind(leaf) for path, leaf in flatten(found, name)}
    lines = [f"{path} is missing" for path in ours if path not in theirs]
    lines += [f"{path} is not expected" for path in theirs if path not in ours]
    for path in ours:
        if path in theirs and ours[path] != theirs[path]:
            lines.append(f"{path} is {theirs[path]}, expected {ours[path]}")
    return lines


def _kind(leaf: Any) -> str:
    if is_tensor(leaf) or isinstance(leaf, np.ndarray):
        dtype = str(leaf.dtype).removeprefix("torch.")
        return f"{dtype} {tuple(leaf.shape)}"
    return type(leaf).__name__


def map_leaves(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """The same tree, with ``function`` applied to every leaf."""
    return unflatten(tree, [function(leaf) for _, leaf in flatten(tree)])
