"""What Ray does not know of actors, and what it does: names, interfaces, states."""

from __future__ import annotations

import pickle
import time
from typing import TYPE_CHECKING, Any

import ray
from ray.core.generated.gcs_pb2 import ActorTableData
from ray.experimental import internal_kv

from ..protocol import ActorInfo, ActorInterface, ActorState

if TYPE_CHECKING:
    from collections.abc import Mapping

_SPACE = "skate"  # in Ray's key-value store
_RESTART_S = 10.0  # a slower constructor goes on by itself
_LOOK_S = 0.005
_NEWS_S = 0.5  # how long news of an actor may take to this process
# What a process that has not called an actor yet takes its state for.
_UNKNOWN = (None, ActorTableData.DEPENDENCIES_UNREADY)


def publish(handle: Any, interface: ActorInterface) -> None:
    """Keep what a handle needs, for those who find the actor by its name."""
    internal_kv._internal_kv_put(
        _key(handle), pickle.dumps(interface), namespace=_SPACE
    )


def look_up(handle: Any) -> ActorInterface:
    """Raises ValueError if the actor was not started by skate."""
    found = internal_kv._internal_kv_get(_key(handle), namespace=_SPACE)
    if found is None:
        raise ValueError(
            f"{handle!r} was not started by skate, so skate does not know its methods; "
            "use ray.get_actor."
        )
    interface: ActorInterface = pickle.loads(found)
    return interface


def _key(handle: Any) -> str:
    return f"actor/{handle._actor_id.hex()}"


def num_restarts(actor_id: str) -> int:
    """How often Ray has restarted the actor of this id, in hex."""
    return int(ray._private.state.actors(actor_id)["NumRestarts"])


def wait_for_restart(handle: Any, restarts: int) -> None:
    """Wait until the actor has restarted more often, or is dead, and it is known here.

    Ray's kill is a message, which later calls overtake; and it refuses calls that it
    gets while an actor restarts.
    """
    end = time.monotonic() + _RESTART_S
    actor_id = handle._actor_id.hex()
    has_left = False
    while time.monotonic() < end:
        here = handle._get_local_state()
        if here == ActorTableData.DEAD:
            return
        if here == ActorTableData.RESTARTING:
            has_left = True
        elif has_left and here == ActorTableData.ALIVE:
            return
        now = ray._private.state.actors(actor_id)
        if now["State"] == "DEAD":
            return
        if now["State"] == "ALIVE" and int(now["NumRestarts"]) > restarts:
            if here in _UNKNOWN:
                return  # the first call from here asks where it is now
            # The news of it come soon, or were too quick to be seen.
            end = min(end, time.monotonic() + _NEWS_S)
        time.sleep(_LOOK_S)


def wait_for_death(handle: Any) -> None:
    """Wait until Ray, and this process, know that the actor is dead.

    Until then, a call that follows the kill may overtake it, and be answered.
    """
    end = time.monotonic() + _RESTART_S
    actor_id = handle._actor_id.hex()
    while time.monotonic() < end:
        here = handle._get_local_state()
        if here == ActorTableData.DEAD or (
            here in _UNKNOWN and ray._private.state.actors(actor_id)["State"] == "DEAD"
        ):
            return
        time.sleep(_LOOK_S)


def list_actors(own: Mapping[str, str]) -> list[ActorInfo]:
    """The actors of this job, oldest first; ``own``: other names of namespaces."""
    named = ray.util.list_named_actors(all_namespaces=True)
    spaces = {one["name"]: own.get(one["namespace"], one["namespace"]) for one in named}
    job = ray.get_runtime_context().get_job_id()
    found = [one for one in ray._private.state.actors().values() if one["JobID"] == job]
    found.sort(key=lambda one: one["StartTime"])
    return [_info(one, spaces.get(one["Name"], "")) for one in found]


def _info(one: dict[str, Any], namespace: str) -> ActorInfo:
    state = one["State"]
    if state == "DEPENDENCIES_UNREADY":
        state = "PENDING_CREATION"
    cause = one["DeathCause"].actor_died_error_context.error_message
    return ActorInfo(
        actor_id=int(one["ActorID"], 16),
        class_name=one["ActorClassName"],
        state=ActorState(state),
        name=one["Name"] or None,
        namespace=namespace,
        num_restarts=int(one["NumRestarts"]),
        pid=int(one["Pid"] or 0),
        is_detached=bool(one["IsDetached"]),
        death_cause=cause if state == "DEAD" else "",
    )
