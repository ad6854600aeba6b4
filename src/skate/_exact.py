"""Arguments as values of the built-in types themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def printable(name: str) -> str:
    """``name`` for people: halves of surrogate pairs, which no file takes, escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def exact(value: Any) -> Any:  # Any: arguments that were not checked yet
    """``value`` without the classes that only its program knows.

    A name may be the member of an enum, a number NumPy's: of a subclass of ``str``,
    ``int`` or ``float``. Other processes would need the module of that class to read
    it, and the supervisor imports none of the program's. It is also read as what it
    says, whatever its own ``__str__`` makes of it. Looks into dicts, lists and tuples.
    """
    kind = type(value)
    if kind in (str, int, float, bool, type(None)):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {exact(key): exact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [exact(item) for item in value]
    if isinstance(value, tuple):
        return tuple(exact(item) for item in value)
    return value
