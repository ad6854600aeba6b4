"""What every actor can do, on every engine: Ray's built-in methods, and leaving."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn


class ActorExit(BaseException):
    """Raised by ``exit_actor``: the actor ends, and is not restarted.

    Not an ``Exception``: user code that catches those lets it through.
    """


def _ready(instance: Any) -> bool:
    return True


def _call(
    instance: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    return function(instance, *args, **kwargs)


def _terminate(instance: Any) -> NoReturn:
    raise ActorExit


# Methods of every actor, under Ray's names. A class may have its own instead.
BUILT_IN_METHODS: Mapping[str, Callable[..., Any]] = {
    "__ray_ready__": _ready,
    "__ray_call__": _call,
    "__ray_terminate__": _terminate,
}


def find_method(instance: Any, name: str) -> Callable[..., Any]:
    """The method ``name`` of an actor's instance, built-in ones included."""
    if name in BUILT_IN_METHODS and not hasattr(instance, name):
        return partial(BUILT_IN_METHODS[name], instance)
    method: Callable[..., Any] = getattr(instance, name)
    return method
