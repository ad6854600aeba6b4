"""Amounts of resources: whole multiples of 1 / UNIT, as in Ray.

People see and give floats; whoever adds amounts up counts units, so that what was taken
and given back leaves exactly what was there before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

UNIT = 10_000
_DIGITS = 4  # of 1 / UNIT


def units(amount: float) -> int:
    return round(amount * UNIT)


def in_units(amounts: Mapping[str, float]) -> dict[str, int]:
    return {name: units(amount) for name, amount in amounts.items()}


def in_amounts(counts: Mapping[str, int]) -> dict[str, float]:
    return {name: count / UNIT for name, count in counts.items()}


def nearest_amount(amount: float) -> float:
    """``amount``, or the multiple of 1 / UNIT next to it; its type stays."""
    return round(amount, _DIGITS)


def add_up(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The exact sums, by name."""
    found: dict[str, int] = {}
    for part in parts:
        for name, amount in part.items():
            found[name] = found.get(name, 0) + units(amount)
    return in_amounts(found)
