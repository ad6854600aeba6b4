"""The one place that imports an engine, and only the one that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .protocol import Engine, EngineConfig, Observer

ENGINES = ("embedded", "inline", "ray")


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
    if name == "ray":
        from .ray import driver as ray_driver

        return ray_driver.open(config)
    import difflib  # only to help

    valid = " or ".join(map(repr, ENGINES))
    close = difflib.get_close_matches(str(name), ENGINES, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown engine {name!r}: it must be {valid}.{hint}")


def attach(pid: int | None) -> Observer:
    """Look at a session of another process: of the driver ``pid``, or the only one.

    Raises:
        ValueError: there is no such session, or several to choose from.
    """
    try:
        from .embedded import observe
    except ImportError as error:
        raise ValueError(f"there is no session to look at: {error}.") from error
    found = observe.sessions()
    if pid is None and len(found) == 1:
        pid = next(iter(found))
    if pid in found:
        return observe.Observer(found[pid])
    there = ", ".join(map(str, sorted(found))) or "none"
    if pid is None and found:
        raise ValueError(
            f"several sessions run: drivers with process ids {there}. Give one of them."
        )
    what = "no session of skate runs" if pid is None else f"{pid} is no driver of skate"
    raise ValueError(
        f"{what} (running: {there}). Only sessions of the embedded engine, of the same "
        "user and on this machine, can be looked at."
    )
