"""Options of tasks, actors and methods: frozen, checked once, the same everywhere.

Every option of Ray's is one of three: implemented (a field of a dataclass below),
accepted without effect because one machine has nothing to choose (``_ACCEPTED``), or
refused unless it is set to the value that means "off" (``_LATER``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from ._amounts import UNIT, nearest_amount
from ._exact import exact
from ._placement import Placement
from ._runtime_env import NO_ENV, RuntimeEnv, check_runtime_env


def check_quantity(name: str, value: Any) -> float:
    """``value`` as an amount of a resource: a number, zero or more.

    As in Ray, it is counted in 1/10000, to the nearest (a third of a GPU is 0.3333),
    and what is less than that is refused.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"{name} must be a number, not {value!r} of type {type(value).__name__}."
        )
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be zero or more and finite, not {value!r}.")
    if 0 < value < 1 / UNIT:
        raise ValueError(
            f"{name} must be zero, or {1 / UNIT:g} or more: amounts are counted in "
            f"1/{UNIT}. It is {value!r}."
        )
    return nearest_amount(value)


def check_resources(name: str, value: Any) -> dict[str, float]:
    """``value`` as amounts of custom resources by name."""
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name} must be a dict from names to numbers, such as "
            f"{{'simulator': 1}}, not {value!r}."
        )
    checked = {}
    for key, amount in value.items():
        if not isinstance(key, str) or not key:
            raise TypeError(f"the names in {name} must be strings, not {key!r}.")
        if key in ("CPU", "GPU"):
            raise ValueError(
                f"{name} cannot hold {key!r}: use num_{key.lower()}s for that."
            )
        if "_group_" in key or key.startswith("bundle"):
            raise ValueError(
                f"{name} cannot hold {key!r}: names with '_group_', or that begin with "
                "'bundle', are those of placement groups. Use another name."
            )
        checked[key] = check_quantity(f"{name}[{key!r}]", amount)
    return checked


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for an unknown ``name``: the nearest valid one, or all of them."""
    import difflib  # only to help

    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"there is {', '.join(map(repr, valid))}." if valid else "there is none."


def _check_int(minimum: int, meaning: str) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(
                f"{name} must be an integer, not {value!r} of type "
                f"{type(value).__name__}."
            )
        if value < minimum:
            raise ValueError(f"{name} must be {meaning}, not {value!r}.")
        return value

    return check


def _check_type(kind: type, article: str) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError(
                f"{name} must be {article}, not {value!r} of type "
                f"{type(value).__name__}."
            )
        return value

    return check


def _check_name(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(
            f"{name} must be a string, not {value!r} of type {type(value).__name__}."
        )
    if not value:
        raise ValueError(f"{name} must not be the empty string.")
    return value


# Values of ``num_returns`` beside the number of values that a call returns.
STREAMING = -1  # the items of a generator, one by one
BY_FUNCTION = -2  # not given: streaming for a generator, else one value


def _check_num_returns(name: str, value: Any) -> int:
    if isinstance(value, str) and value in ("streaming", "dynamic"):
        return STREAMING
    if isinstance(value, str):
        raise ValueError(f"{name} must be a number or 'streaming', not {value!r}.")
    return _check_int(0, "zero or more")(name, value)


def _check_lifetime(name: str, value: Any) -> str:
    if value not in ("detached", "non_detached"):
        raise ValueError(f"{name} must be 'detached' or 'non_detached', not {value!r}.")
    checked: str = value
    return checked


def _check_groups(name: str, value: Any) -> dict[str, int]:
    # Ray takes a list of dicts as well, from before it had this form.
    if isinstance(value, (list, tuple)):
        value = {group["name"]: group["max_concurrency"] for group in value}
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name} must be a dict from names to how many calls may run at once, such "
            f"as {{'io': 2}}, not {value!r}."
        )
    check = _check_int(1, "1 or more")
    groups = {
        _check_name(f"a name in {name}", key): check(f"{name}[{key!r}]", number)
        for key, number in value.items()
    }
    if len(groups) > _MAX_GROUPS:
        raise ValueError(f"{name} has {len(groups)} groups; at most {_MAX_GROUPS}.")
    return groups


def returns_of(function: Any, num_returns: int) -> int:
    """``num_returns`` of a call of ``function``, when the options say this.

    Raises:
        ValueError: it is to stream and is no generator.
    """
    is_generator = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(
        function
    )
    if num_returns == BY_FUNCTION:
        return STREAMING if is_generator else 1
    if num_returns == STREAMING and not is_generator:
        name = getattr(function, "__qualname__", None) or repr(function)
        raise ValueError(
            f"num_returns='streaming' is for generator functions, and {name} has no "
            "'yield'."
        )
    return num_returns


def _check_window(name: str, value: Any) -> int:
    if value == -1:
        return 0
    return _check_int(1, "1 or more, or -1 for no limit")(name, value)


def _check_gpus(name: str, value: Any) -> float:
    amount = check_quantity(name, value)
    if amount > 1 and amount != int(amount):
        raise ValueError(
            f"{name} must be a whole number, or a share of one GPU below 1, not "
            f"{value!r}."
        )
    return amount


def _check_retry_exceptions(
    name: str, value: Any
) -> bool | tuple[type[Exception], ...]:
    if isinstance(value, bool):
        return value
    if not isinstance(value, (list, tuple)):
        raise TypeError(
            f"{name} must be True, False or a list of exception types, not {value!r}."
        )
    for kind in value:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise ValueError(f"{name} must list exception types, and has {kind!r}.")
    return tuple(value)


def _check_strategy(name: str, value: Any) -> Placement | None:
    if isinstance(value, str) and value in ("DEFAULT", "SPREAD"):
        return None  # the same on one machine
    if not hasattr(type(value), "skate_placement"):
        raise ValueError(
            f"{name} must be 'DEFAULT', 'SPREAD' or a strategy of "
            f"skate.util.scheduling_strategies, not {value!r}."
        )
    placement: Placement | None = value.skate_placement
    return placement


_MAX_GROUPS = 1000

_Check = Callable[[str, Any], Any]
_CHECKS: dict[str, _Check] = {
    "num_cpus": check_quantity,
    "num_gpus": _check_gpus,
    "resources": check_resources,
    "num_returns": _check_num_returns,
    "_generator_backpressure_num_objects": _check_window,
    "retry_exceptions": _check_retry_exceptions,
    "max_calls": _check_int(0, "zero (no limit) or more"),
    "max_retries": _check_int(-1, "zero or more, or -1 for no limit"),
    "name": _check_name,
    "namespace": _check_name,
    "get_if_exists": _check_type(bool, "True or False"),
    "max_concurrency": _check_int(1, "1 or more"),
    "concurrency_groups": _check_groups,
    "concurrency_group": _check_name,
    "max_pending_calls": _check_int(-1, "zero or more, or -1 for no limit"),
    "allow_out_of_order_execution": _check_type(bool, "True or False"),
    "max_restarts": _check_int(-1, "zero or more, or -1 for no limit"),
    "max_task_retries": _check_int(-1, "zero or more, or -1 for no limit"),
    "lifetime": _check_lifetime,
    "scheduling_strategy": _check_strategy,
    "runtime_env": check_runtime_env,
}

# Checked, then without effect: there is one machine, so there is nothing to choose.
_ACCEPTED: dict[str, _Check] = {
    "memory": check_quantity,
    "enable_task_events": _check_type(bool, "True or False"),
    "accelerator_type": _check_name,
    "label_selector": _check_type(dict, "a dict"),
    "_metadata": _check_type(dict, "a dict"),
    "_labels": _check_type(dict, "a dict"),
}

# Ray's options that no engine of skate has yet -> values that mean "off".
_LATER: dict[str, tuple[Any, ...]] = {
    "placement_group": ("default",),
    "placement_group_bundle_index": (-1,),
    "placement_group_capture_child_tasks": (False,),
    "object_store_memory": (),
    "fallback_strategy": ([],),
    "enable_tensor_transport": (False,),
    "tensor_transport": (),
    "_actor_generator_backpressure_num_objects": (-1,),
}
_TASK_ONLY = {
    "max_retries",
    "max_calls",
    "retry_exceptions",
    "num_returns",
    "_generator_backpressure_num_objects",
}
# Fields of the dataclasses below that have names of their own.
_FIELDS = {
    "scheduling_strategy": "placement",
    "_generator_backpressure_num_objects": "window",
}
_ACTOR_ONLY = {
    "namespace",
    "get_if_exists",
    "max_concurrency",
    "max_restarts",
    "max_task_retries",
    "lifetime",
    "concurrency_groups",
    "max_pending_calls",
    "allow_out_of_order_execution",
    "object_store_memory",
    "enable_tensor_transport",
    "_actor_generator_backpressure_num_objects",
}
_METHOD_ONLY = {"concurrency_group", "tensor_transport"}
_EVERYWHERE = {*_CHECKS, *_ACCEPTED, *_LATER} - _TASK_ONLY - _ACTOR_ONLY - _METHOD_ONLY
_TASK_NAMES = frozenset(_EVERYWHERE | _TASK_ONLY)
_ACTOR_NAMES = frozenset(_EVERYWHERE | _ACTOR_ONLY)
_METHOD_NAMES = frozenset(
    _METHOD_ONLY
    | {
        "num_returns",
        "max_task_retries",
        "retry_exceptions",
        "enable_task_events",
        "name",
        "_generator_backpressure_num_objects",
    }
)


def _check_all(
    given: Mapping[str, Any], valid: frozenset[str], owner: str
) -> dict[str, Any]:
    """What of ``given`` has an effect, checked. None means "the default", as in Ray."""
    kept = {}
    for name, value in given.items():
        if name not in valid:
            raise ValueError(
                f"unknown option {name!r} for {owner}: {nearest(name, valid)}"
            )
        if value is None:
            continue
        value = exact(value)
        if name in _LATER:
            if value not in _LATER[name]:
                raise ValueError(
                    f"{name}={value!r}: skate's engines do not have this option of "
                    f"Ray's yet. Leave it out of the options of {owner}."
                )
        elif name in _ACCEPTED:
            _ACCEPTED[name](name, value)
        else:
            kept[_FIELDS.get(name, name)] = _CHECKS[name](name, value)
    return kept


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """Options of a remote function; amounts of resources are held while it runs."""

    num_cpus: float = 1
    num_gpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    num_returns: int = BY_FUNCTION
    max_retries: int = 3  # after a crash of its worker; -1: no limit
    # User errors after which it is tried again, within max_retries: all, or these.
    retry_exceptions: bool | tuple[type[Exception], ...] = False
    max_calls: int = 0  # then its worker is replaced; 0: never
    window: int = 0  # items of a stream that may wait to be read; 0: any number
    name: str | None = None  # for people; None: the function's own
    placement: Placement | None = None  # the placement group that it runs in
    runtime_env: RuntimeEnv = NO_ENV  # inside that of the caller

    def updated(self, given: Mapping[str, Any]) -> TaskOptions:
        return _updated(self, _check_all(given, _TASK_NAMES, "a remote function"))


@dataclass(frozen=True, slots=True)
class ActorOptions:
    """Options of an actor class; resources are held while the actor lives."""

    num_cpus: float = 0
    num_gpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    name: str | None = None  # for get_actor; None: the actor has no name
    namespace: str | None = None  # None: the one given to init
    get_if_exists: bool = False
    placement: Placement | None = None  # the placement group that it lives in
    runtime_env: RuntimeEnv = NO_ENV  # inside that of the creator
    # Calls that may run at once: threads, or coroutines if the class has any.
    # 0: not set (ActorClass turns it into 1, or 1000 for coroutines, as Ray does).
    max_concurrency: int = 0
    concurrency_groups: Mapping[str, int] = field(default_factory=dict)
    max_restarts: int = 0  # -1: no limit
    max_task_retries: int = 0  # of calls that a death interrupts; -1: no limit
    max_pending_calls: int = -1  # unanswered calls of one caller; -1, 0: no limit
    allow_out_of_order_execution: bool = False
    lifetime: str = "non_detached"  # "detached": it lives on without a handle

    def updated(self, given: Mapping[str, Any]) -> ActorOptions:
        options = _updated(self, _check_all(given, _ACTOR_NAMES, "an actor class"))
        if options.get_if_exists and options.name is None:
            raise ValueError("get_if_exists=True needs a name to look for: name=...")
        return options


def check_method_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an actor's method: those that were given and have an effect."""
    kept = _check_all(given, _METHOD_NAMES, "an actor's method")
    kept.pop("name", None)  # a label in Ray's dashboard
    return kept


_Options = TypeVar("_Options", TaskOptions, ActorOptions)


def _updated(options: _Options, checked: dict[str, Any]) -> _Options:
    assert checked.keys() <= {f.name for f in fields(options)}
    return replace(options, **checked)
