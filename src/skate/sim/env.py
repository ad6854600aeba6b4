"""Environments: what one must have, and how they are made."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, Protocol


class Env(Protocol):
    """A gymnasium environment, or anything with these two methods."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]: ...

    def step(self, action: Any, /) -> tuple[Any, Any, bool, bool, dict[str, Any]]: ...


# A gymnasium id, or a function that makes an environment, a gymnasium vector
# environment, or a PettingZoo parallel environment.
EnvMaker = str | Callable[[], Any]


def make_env(env: str | Callable[[], Env]) -> Env:
    """One environment, from a gymnasium id or a function.

    Raises:
        ImportError: an id, and gymnasium is not installed.
        ValueError: gymnasium has no such environment; the message has the nearest.
    """
    if not isinstance(env, str):
        return env()
    check_id(env)
    import gymnasium

    made: Env = gymnasium.make(env)
    return made


def check_id(env: EnvMaker) -> None:
    """Raise unless ``env`` is no id, or one that gymnasium has."""
    if not isinstance(env, str):
        if not callable(env):
            raise TypeError(
                f"env must be a gymnasium id or a function that makes an environment, "
                f"not {env!r}. For an object, pass a function: lambda: make_it()."
            )
        return
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(
            f"the environment {env!r} comes from gymnasium, which is not installed: "
            "pip install 'skate[rl]'"
        ) from error
    # An id may name the module that registers it: "module:Name-v0".
    if ":" not in env and env not in gymnasium.registry:
        try:
            gymnasium.spec(env)  # without a version it takes the latest
        except gymnasium.error.Error as error:
            by_lower = {name.lower(): name for name in gymnasium.registry}
            close = difflib.get_close_matches(env.lower(), by_lower, 3, cutoff=0)
            nearest = " or ".join(by_lower[name] for name in close)
            raise ValueError(
                f"gymnasium has no environment {env!r}. Did you mean {nearest}?"
            ) from error
