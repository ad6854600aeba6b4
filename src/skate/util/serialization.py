"""How values of a type are pickled, and why one cannot be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TextIO

import skate

from ..engine import serialize

__all__ = [
    "FailureTuple",
    "deregister_serializer",
    "inspect_serializability",
    "register_serializer",
]

# These go between processes without pickle.
_NATIVE = (type(None), bool, int, float, str, bytes, tuple, skate.ObjectRef)


def register_serializer(
    cls: type,
    *,
    serializer: Callable[[Any], Any],
    deserializer: Callable[[Any], Any],
) -> None:
    """Pickle instances of ``cls`` in your own way, in this process.

    A task that returns such values registers ``cls`` itself: as in Ray, each process
    has its own registrations. Reading needs none, the deserializer goes along.

    Args:
        cls: exactly this type, and no subclass.
        serializer: takes an instance, and gives a value that can be pickled.
        deserializer: takes that value, and gives an instance; can be pickled itself.

    Raises:
        TypeError: ``cls`` is no type, or one that skate does not pickle.
    """
    if not isinstance(cls, type):
        raise TypeError(f"register_serializer takes a type, not {cls!r}.")
    if cls in _NATIVE or cls.__module__ == "numpy":
        raise TypeError(
            f"values of type {cls.__name__} are not pickled by skate, so a serializer "
            "for them would not be asked."
        )

    def reduce(value: Any) -> tuple[Any, ...]:
        return deserializer, (serializer(value),)

    serialize.register_reducer(cls, reduce)


def deregister_serializer(cls: type) -> None:
    """Forget what was registered for ``cls`` in this process, if anything was."""
    serialize.deregister_reducer(cls)


class FailureTuple(NamedTuple):
    """A part of a value that cannot be pickled."""

    obj: Any
    path: tuple[str, ...]  # from the name of the whole to the part
    parent: Any  # what refers to ``obj``

    def __hash__(self) -> int:
        return hash((id(self.obj), self.path))  # obj and parent may have no hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FailureTuple) and (
            self.obj is other.obj and self.path == other.path
        )

    def __repr__(self) -> str:
        path = " -> ".join(self.path)
        return f"FailTuple({self.path[-1]} [path={path}, obj={self.obj!r}])"


def inspect_serializability(
    base_obj: Any,
    name: str | None = None,
    depth: int = 3,
    print_file: TextIO | None = None,
) -> tuple[bool, set[FailureTuple]]:
    """Say whether ``base_obj`` can be sent to a task, and if not, what is at fault.

    Args:
        base_obj: a function, a class, or any value.
        name: what to call it in the report.
        depth: accepted; parts are looked at as deep as they go.
        print_file: where the report goes; None is standard output.

    Returns:
        True and nothing, or False and the part that cannot be pickled.
    """
    label = name or getattr(base_obj, "__qualname__", None) or type(base_obj).__name__
    culprit = serialize.find_culprit(base_obj)
    out = print_file or sys.stdout
    if culprit is None:
        print(f"{label} can be pickled.", file=out)
        return True, set()
    steps = (step.removeprefix(" -> ") for step in culprit.steps)
    failure = FailureTuple(culprit.part, (label, *steps), culprit.parent)
    print(
        f"{label} cannot be pickled, because of\n"
        f"    {' -> '.join(failure.path)}: {culprit.part!r}\n"
        f"    {type(culprit.error).__name__}: {culprit.error}\n"
        "Make it inside the task or actor that uses it, or register a serializer for "
        "its type: skate.util.register_serializer.",
        file=out,
    )
    return False, {failure}
