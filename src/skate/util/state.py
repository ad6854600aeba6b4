"""What there is and how it does, with Ray's names: ``list_actors()`` and the like.

>>> [actor.state for actor in list_actors(filters=[("class_name", "=", "Env")])]
['ALIVE', 'DEAD']

Tasks are known by function: ``summarize_tasks``, and ``skate.summary`` in more detail.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import skate

from .._runtime import current
from .placement_group import placement_group_table

__all__ = [
    "StateRow",
    "get_actor",
    "get_job",
    "get_node",
    "get_placement_group",
    "list_actors",
    "list_jobs",
    "list_nodes",
    "list_placement_groups",
    "summarize_actors",
    "summarize_tasks",
]

Filters = Sequence[tuple[str, str, Any]]


class StateRow(Mapping[str, Any]):
    """One thing of the session: ``row.state`` and ``row["state"]``."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __getattr__(self, name: str) -> Any:
        try:
            return vars(self)["_values"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"StateRow({self._values})"


def list_actors(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = 100,
    timeout: int = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[StateRow]:
    """Every actor, oldest first; of the dead, the last 1000.

    Args:
        address: accepted; of Ray's cluster.
        filters: such as ``[("state", "=", "ALIVE"), ("name", "!=", "x")]``.
        limit: how many rows at most.
        timeout: accepted.
        detail: accepted; the rows are complete.
        raise_on_missing_output: accepted; nothing is left out.
    """
    rows = (
        {
            "actor_id": f"{actor.actor_id:016x}",
            "class_name": actor.class_name.rpartition(".")[2],
            "state": actor.state.value,
            "job_id": skate.get_runtime_context().get_job_id(),
            "name": actor.name or "",
            "node_id": skate.get_runtime_context().get_node_id(),
            "pid": actor.pid,
            "ray_namespace": actor.namespace,
            "is_detached": actor.is_detached,
            "num_restarts": actor.num_restarts,
            "death_cause": actor.death_cause or None,
        }
        for actor in current().list_actors()
    )
    return _chosen(rows, filters, limit)


def get_actor(id: str, **accepted: Any) -> StateRow | None:  # noqa: A002 - Ray's name
    """The actor with this id; None if there is none."""
    return _first(list_actors(filters=[("actor_id", "=", id)]))


def list_nodes(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = 100,
    timeout: int = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[StateRow]:
    """The machines; arguments as ``list_actors``."""
    rows = (
        {
            "node_id": node["NodeID"],
            "node_ip": "127.0.0.1",
            "node_name": node["NodeManagerHostname"],
            "state": "ALIVE" if node["Alive"] else "DEAD",
            "is_head_node": True,
            "resources_total": node["Resources"],
        }
        for node in skate.nodes()
    )
    return _chosen(rows, filters, limit)


def get_node(id: str, **accepted: Any) -> StateRow | None:  # noqa: A002 - Ray's name
    """The machine with this id; None if there is none."""
    return _first(list_nodes(filters=[("node_id", "=", id)]))


def list_jobs(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = 100,
    timeout: int = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[StateRow]:
    """The session, which is one job; arguments as ``list_actors``."""
    job = {
        "job_id": skate.get_runtime_context().get_job_id(),
        "type": "DRIVER",
        "status": "RUNNING",
    }
    return _chosen([job], filters, limit)


def get_job(id: str, **accepted: Any) -> StateRow | None:  # noqa: A002 - Ray's name
    """The job with this id; None if there is none."""
    return _first(list_jobs(filters=[("job_id", "=", id)]))


def list_placement_groups(
    address: str | None = None,
    filters: Filters | None = None,
    limit: int = 100,
    timeout: int = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[StateRow]:
    """Every placement group, removed ones too; arguments as ``list_actors``."""
    return _chosen(placement_group_table().values(), filters, limit)


def get_placement_group(id: str, **accepted: Any) -> StateRow | None:  # noqa: A002 - Ray's name
    """The placement group with this id; None if there is none."""
    return _first(list_placement_groups(filters=[("placement_group_id", "=", id)]))


def summarize_actors(**accepted: Any) -> dict[str, Any]:
    """How many actors of each class are in which state."""
    summary: dict[str, Any] = {}
    actors = list_actors(limit=1 << 30)
    for actor in actors:
        row = summary.setdefault(
            actor.class_name, {"class_name": actor.class_name, "state_counts": {}}
        )
        counts = row["state_counts"]
        counts[actor.state] = counts.get(actor.state, 0) + 1
    return _cluster({"summary": summary, "total_actors": len(actors)})


def summarize_tasks(**accepted: Any) -> dict[str, Any]:
    """How many calls of each function, or method, are in which state."""
    summary: dict[str, Any] = {}
    total = 0
    for name, function in skate.summary().functions.items():
        counts = {
            "FINISHED": function.finished,
            "FAILED": function.failed,
            "RUNNING": function.running,
            "PENDING_NODE_ASSIGNMENT": function.queued,
        }
        counts = {state: number for state, number in counts.items() if number}
        summary[name] = {"func_or_class_name": name, "state_counts": counts}
        total += sum(counts.values())
    return _cluster({"summary": summary, "total_tasks": total})


def _cluster(summary: dict[str, Any]) -> dict[str, Any]:
    return {"cluster": summary}


def _chosen(
    rows: Iterable[Mapping[str, Any]], filters: Filters | None, limit: int
) -> list[StateRow]:
    if limit < 1:
        raise ValueError(f"limit must be 1 or more, not {limit!r}.")
    for _, operator, _ in filters or ():
        if operator not in ("=", "!="):
            raise ValueError(f"a filter compares by '=' or '!=', not {operator!r}.")
    chosen = [StateRow(row) for row in rows if _passes(row, filters or ())]
    return chosen[:limit]


def _passes(row: Mapping[str, Any], filters: Filters) -> bool:
    for key, operator, value in filters:
        if key not in row:
            raise ValueError(f"there is no {key!r} to filter by: {', '.join(row)}.")
        if (str(row[key]).lower() == str(value).lower()) != (operator == "="):
            return False
    return True


def _first(rows: list[StateRow]) -> StateRow | None:
    return rows[0] if rows else None
