"""Ray's words for skate's, and back: options, resources and errors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import ray
from ray import exceptions as theirs

from ... import exceptions as ours
from ..._options import STREAMING
from .. import serialize
from . import placement
from .worker import MayRetry, TaskFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..._options import ActorOptions, TaskOptions
    from ..protocol import MethodSpec

_NO_LISTS = (
    "on engine='ray', retry_exceptions of a method is True or False; lists of types "
    "are for engine='embedded' and engine='inline'."
)

# Options -----------------------------------------------------------------------------


def task_options(options: TaskOptions, name: str) -> dict[str, Any]:
    """For ``ray.remote`` of a function."""
    return {
        "num_cpus": options.num_cpus,
        "num_gpus": options.num_gpus,
        "resources": dict(options.resources),
        "max_retries": options.max_retries,
        "retry_exceptions": [MayRetry] if options.retry_exceptions else False,
        "max_calls": options.max_calls,
        "runtime_env": options.runtime_env.as_dict() or None,
        "name": name,
        **_returns(options.num_returns, options.window),
        **_place(options, "DEFAULT"),
    }


def _returns(num_returns: int, window: int) -> dict[str, Any]:
    if num_returns != STREAMING:
        return {"num_returns": num_returns}
    return {
        "num_returns": "streaming",
        "_generator_backpressure_num_objects": window or -1,
    }


def _place(options: TaskOptions | ActorOptions, default: str) -> dict[str, Any]:
    if options.placement is None:
        return {"scheduling_strategy": default}
    return {"scheduling_strategy": placement.strategy_of(options.placement)}


def actor_options(options: ActorOptions, namespace: str) -> dict[str, Any]:
    """For ``ray.remote`` of a class."""
    wants_nothing = not (options.num_cpus or options.num_gpus or options.resources)
    return {
        # What holds nothing fits anywhere; Ray would put much of it on one machine.
        **_place(options, "SPREAD" if wants_nothing else "DEFAULT"),
        "num_cpus": options.num_cpus,
        "num_gpus": options.num_gpus,
        "resources": dict(options.resources),
        "runtime_env": options.runtime_env.as_dict() or None,
        "max_concurrency": options.max_concurrency,
        "max_restarts": options.max_restarts,
        "max_task_retries": options.max_task_retries,
        "max_pending_calls": options.max_pending_calls or -1,
        "allow_out_of_order_execution": options.allow_out_of_order_execution or None,
        "concurrency_groups": {
            _group(place): number
            for place, number in enumerate(options.concurrency_groups.values(), 1)
        }
        or None,
        "lifetime": options.lifetime if options.name else None,
        "name": options.name,
        "namespace": namespace if options.name else None,
    }


def _group(place: int) -> str:
    """Ray's name for an actor's concurrency group; a call knows its place alone."""
    return f"group{place}"


def method_options(method: MethodSpec) -> dict[str, Any]:
    """For a call of an actor's method."""
    if not isinstance(method.retry_exceptions, bool):
        raise ValueError(_NO_LISTS)
    if method.num_returns == 1 and not (
        method.max_task_retries or method.group or method.retry_exceptions
    ):
        return {}  # Ray's own defaults
    return {
        **_returns(method.num_returns, method.window),
        "max_task_retries": method.max_task_retries,
        "retry_exceptions": method.retry_exceptions is True,
        "concurrency_group": _group(method.group) if method.group else None,
    }


# Resources ---------------------------------------------------------------------------


def countable(resources: Mapping[str, float]) -> dict[str, float]:
    """CPUs, GPUs and custom resources; not what Ray counts for itself."""
    internal = ("node:", "memory", "object_store_memory")
    return {
        key: amount
        for key, amount in resources.items()
        if not key.startswith(internal) and "_group_" not in key
    }


def check_demand(name: str, options: TaskOptions | ActorOptions) -> None:
    """Refuse what no node of the cluster has, even when all of it is free.

    Raises:
        ResourceError: the message says what there is.
    """
    demand = {"CPU": options.num_cpus, "GPU": options.num_gpus, **options.resources}
    demand = {key: amount for key, amount in demand.items() if amount}
    if options.placement is not None:
        options.placement.place(name, demand)
        return
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for node in nodes:
        if all(node.get(key, 0) >= amount for key, amount in demand.items()):
            return
    asked = ", ".join(f"{amount:g} {key}" for key, amount in demand.items())
    kinds = {describe(countable(node)) for node in nodes}
    raise ours.ResourceError(
        f"{name} asks for {asked}, which no node of the Ray cluster has: there are "
        f"{len(nodes)} nodes, of {' or of '.join(sorted(kinds))}. Ask for less, add "
        "such a node, or where skate starts Ray itself, say so in skate.init("
        "num_cpus=..., num_gpus=..., resources=...)."
    )


def describe(resources: Mapping[str, float]) -> str:
    return (
        ", ".join(f"{n:g} {key}" for key, n in sorted(resources.items())) or "nothing"
    )


# Errors ------------------------------------------------------------------------------


def to_skate(error: BaseException) -> BaseException:
    """What a skate call raises where Ray raised ``error``."""
    if isinstance(error, theirs.RayTaskError):
        return _of_task(error)
    for kind, translate in _ERRORS:
        if isinstance(error, kind):
            translated: BaseException = translate(error)
            return translated
    return error


def _of_task(error: theirs.RayTaskError) -> BaseException:
    cause = error.cause
    if isinstance(cause, TaskFailed):
        return serialize.load_error(cause.data)
    if isinstance(cause, theirs.RayError):  # of an argument, say: the task did not run
        return to_skate(cause)
    # Ray failed around the function: it could not import skate there, for example.
    text = _plain(error.traceback_str)
    return ours.TaskError.of(cause, error.function_name, text)


def _cancelled(error: Any) -> BaseException:
    return ours.TaskCancelledError("the task was cancelled by skate.cancel.")


def _actor_died(error: Any) -> BaseException:
    text = _plain(str(error))
    if error.actor_init_failed:
        text = text.partition(f"{TaskFailed.__name__}: ")[2] or text
        return ours.ActorDiedError(
            f"the actor is dead: its constructor raised.\n\n{text}"
        )
    why = "the actor is dead"
    if "owner has died" in text:
        why += ", as the process is that had created it"
    elif "INTENDED_USER_EXIT" in text:
        why += ": it has left, by exit_actor or the like"
    return ours.ActorDiedError(f"{why}. Ray says: {text} Create it anew.")


def _plain(text: str) -> str:
    """Without the colours of a terminal."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).strip()


def _worker_crashed(error: Any) -> BaseException:
    return ours.WorkerCrashedError(
        "the process that ran the task ended, or its machine did, more often than "
        f"max_retries allows. Ray says: {_plain(str(error))}"
    )


def _group_removed(error: Any) -> BaseException:
    return ours.TaskPlacementGroupRemoved(
        "the task's placement group was removed before it could run."
    )


def _actors_group_removed(error: Any) -> BaseException:
    return ours.ActorDiedError(
        "the actor cannot start: its placement group was removed."
    )


def _unschedulable(error: Any) -> BaseException:
    return ours.ActorDiedError(
        f"the actor can never start. Ray says: {_plain(str(error))}"
    )


def _unschedulable_task(error: Any) -> BaseException:
    said = _plain(str(error))
    if "placement group" in said:
        return _group_removed(error)
    return ours.ResourceError(f"the task can never start. Ray says: {said}")


def _unavailable(error: Any) -> BaseException:
    return ours.ActorUnavailableError(
        "the actor restarts, or cannot be reached now; the call may have run, or may "
        f"not. Ray says: {_plain(str(error))}"
    )


def _no_runtime_env(error: Any) -> BaseException:
    return ours.RuntimeEnvSetupError(
        f"the runtime_env could not be set up. Ray says: {_plain(str(error))}"
    )


def _too_many_calls(error: Any) -> BaseException:
    said = _plain(str(error))
    limit = re.search(r"more than (\d+) tasks", said)
    limited = f"max_pending_calls={limit[1]}" if limit else "max_pending_calls"
    return ours.PendingCallsLimitExceeded(
        f"this caller has {limited} unanswered calls of the actor. Wait for some, or "
        f"allow more. Ray says: {said}"
    )


def _owner_died(error: Any) -> BaseException:
    return ours.OwnerDiedError(
        "the value is gone with the process that owned it: the one that called put or "
        f".remote for it. Run that again. Ray says: {_plain(str(error))}"
    )


def _lost(error: Any) -> BaseException:
    return ours.ObjectLostError(f"the value is gone. Ray says: {_plain(str(error))}")


def _full(error: Any) -> BaseException:
    return ours.ObjectStoreFullError(
        "the object store of this Ray node is full. Drop refs you no longer need, or "
        f"give the node more object_store_memory. Ray says: {_plain(str(error))}"
    )


def _system(error: Any) -> BaseException:
    return ours.EngineDiedError(
        f"the Ray cluster failed under this call. Ray says: {_plain(str(error))}"
    )


# The first that fits counts: subclasses come before their base.
_ERRORS: list[tuple[Any, Any]] = [
    (theirs.ActorDiedError, _actor_died),
    (theirs.ActorUnavailableError, _unavailable),
    (theirs.TaskPlacementGroupRemoved, _group_removed),
    (theirs.ActorPlacementGroupRemoved, _actors_group_removed),
    (theirs.ActorUnschedulableError, _unschedulable),
    (theirs.TaskUnschedulableError, _unschedulable_task),
    (
        (
            theirs.WorkerCrashedError,
            theirs.NodeDiedError,
            theirs.LocalRayletDiedError,
            theirs.OutOfMemoryError,
        ),
        _worker_crashed,
    ),
    (theirs.RuntimeEnvSetupError, _no_runtime_env),
    (theirs.PendingCallsLimitExceeded, _too_many_calls),
    (theirs.TaskCancelledError, _cancelled),
    (theirs.OwnerDiedError, _owner_died),
    (theirs.ObjectLostError, _lost),
    ((theirs.ObjectStoreFullError, theirs.OutOfDiskError), _full),
    ((theirs.RaySystemError, theirs.RpcError), _system),
]
