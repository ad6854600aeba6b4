"""The one place that imports an engine, and only the one that was asked for."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .protocol import Engine, EngineConfig

ENGINES = ("embedded", "inline")


def open_engine(name: str, config: EngineConfig) -> Engine:
    """Start the engine ``name``.

    Raises:
        ValueError: there is no such engine.
        EngineError: it cannot run on this machine; the message says why.
    """
    if name == "embedded":
        from .embedded import driver

        embedded: Engine = driver.open(config)
        return embedded
    if name == "inline":
        from .inline import engine

        return engine.open(config)
    valid = " or ".join(map(repr, ENGINES))
    if name == "ray":
        raise ValueError(
            f"engine='ray' is not part of this version of skate yet; use {valid}."
        )
    close = difflib.get_close_matches(str(name), ENGINES, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown engine {name!r}: it must be {valid}.{hint}")
