"""Numbers that environment variables give."""

from __future__ import annotations

import math
import os

from ...exceptions import EngineError


def number(name: str, default: float, meaning: str) -> float:
    """A number of zero or more.

    Raises:
        EngineError: the variable is not one; ``meaning`` says what it should be.
    """
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise EngineError(f"{name}={text!r} must be {meaning}.")
    return value
