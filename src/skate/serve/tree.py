"""Trees of arrays: dictionaries and tuples, nested, with one first axis in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# None for a leaf; else ("dict", keys, structures) or ("tuple", type, structures). Plain
# tuples, so that it is hashable, and cheap to send.
Structure = Any
Tree = Any


def flatten(tree: Tree) -> tuple[list[Any], Structure]:
    """The leaves of ``tree`` in order, and what ``build`` needs to make it again."""
    leaves: list[Any] = []
    return leaves, _flatten(tree, leaves)


def _flatten(tree: Tree, leaves: list[Any]) -> Structure:
    if isinstance(tree, Mapping):
        parts = tuple(_flatten(part, leaves) for part in tree.values())
        return "dict", tuple(tree), parts
    if isinstance(tree, tuple):
        kind = None if type(tree) is tuple else type(tree)
        return "tuple", kind, tuple(_flatten(part, leaves) for part in tree)
    leaves.append(tree)
    return None


def build(structure: Structure, leaves: Sequence[Any]) -> Tree:
    """The tree of that structure with these leaves."""
    return leaves[0] if structure is None else _build(structure, iter(leaves))


def _build(structure: Structure, leaves: Iterator[Any]) -> Tree:
    if structure is None:
        return next(leaves)
    kind, names, parts = structure
    values = [_build(part, leaves) for part in parts]
    if kind == "dict":
        return dict(zip(names, values, strict=True))
    return tuple(values) if names is None else names(*values)  # a named tuple


def map_leaves(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """The same tree with ``function`` applied to each leaf."""
    leaves, structure = flatten(tree)
    return build(structure, [function(leaf) for leaf in leaves])


def leaf_name(structure: Structure, index: int) -> str:
    """How an error calls leaf ``index``: ``""`` if the tree is one array."""
    return _names(structure)[index]


def paths(structure: Structure) -> list[str]:
    """The way to each leaf, such as ``actor.0``: keys and numbers joined by dots."""
    if structure is None:
        return [""]
    kind, names, parts = structure
    keys = names if kind == "dict" else range(len(parts))
    return [
        f"{key}.{rest}" if rest else str(key)
        for key, part in zip(keys, parts, strict=True)
        for rest in paths(part)
    ]


def _names(structure: Structure) -> list[str]:
    if structure is None:
        return [""]
    kind, names, parts = structure
    keys = names if kind == "dict" else range(len(parts))
    return [
        f"[{key!r}]{rest}"
        for key, part in zip(keys, parts, strict=True)
        for rest in _names(part)
    ]
