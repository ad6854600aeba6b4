"""What simulations are expected to cost: given, computed, or learned from earlier."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Hashable
from typing import Any

import cloudpickle

_MOST = 100_000  # configurations remembered for one function
_NEWEST = 0.5  # how much the last duration counts against those before it


class LearnedCosts:
    """Seconds that one function's configurations took, as far as they are known."""

    def __init__(self) -> None:
        self._seconds: dict[Hashable, float] = {}
        self._sum = 0.0

    def expect(self, config: Any) -> float:
        """What ``config`` took; the mean of all if it is new."""
        known = self._seconds
        mean = self._sum / len(known) if known else 0.0
        return known.get(config_key(config), mean)

    def record(self, config: Any, seconds: float) -> None:
        key = config_key(config)
        before = self._seconds.pop(key, None)
        if before is not None:
            self._sum -= before
            seconds = _NEWEST * seconds + (1 - _NEWEST) * before
        self._seconds[key] = seconds
        self._sum += seconds
        if len(self._seconds) > _MOST:
            oldest = next(iter(self._seconds))
            self._sum -= self._seconds.pop(oldest)


# By the function's name, so that a cell run again in a notebook finds its costs. They
# are hints: losing them, or mixing two functions of one name, costs time alone.
_learned: dict[str, LearnedCosts] = {}


def learned_costs(function: Callable[..., Any]) -> LearnedCosts:
    """What this process has learned about ``function``."""
    while isinstance(function, functools.partial):
        function = function.func
    named: Any = function if hasattr(function, "__qualname__") else type(function)
    return _learned.setdefault(
        f"{named.__module__}.{named.__qualname__}", LearnedCosts()
    )


def config_key(config: Any) -> Hashable:
    """Equal for equal configurations: themselves if plain, else what they pickle to."""
    if _is_plain(config):
        return config  # type: ignore[no-any-return]
    return hashlib.blake2b(cloudpickle.dumps(config), digest_size=16).digest()


def _is_plain(config: Any) -> bool:
    if type(config) is tuple:
        return all(map(_is_plain, config))
    return config is None or type(config) in (int, float, str, bytes, bool)


def check_cost(index: int, cost: Any) -> float:
    """``cost`` as a number, for the longest-first order.

    Raises:
        ValueError: it is negative, infinite or no number; the message names the run.
    """
    try:
        number = float(cost)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(
            f"the cost of run {index} is {cost!r}; expected a number of zero or more."
        )
    return number
