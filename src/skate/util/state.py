"""What there is and how it does, with Ray's names: ``list_actors()`` and the like.

>>> [actor.state for actor in list_actors(filters=[("class_name", "=", "Env")])]
['ALIVE', 'DEAD']

Every ``list_`` function takes Ray's arguments: ``filters``, such as
``[("state", "=", "ALIVE"), ("name", "!=", "x")]``, and ``limit``, the number of rows.
``address``, ``timeout``, ``detail`` and ``raise_on_missing_output`` are accepted: rows
are complete, and nothing is left out. Every ``get_`` function takes an id, and gives
None if there is no such thing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import skate

from .._runtime import current
from .placement_group import placement_group_table

__all__ = [
    "StateRow",
    "get_actor",
    "get_job",
    "get_node",
    "get_objects",
    "get_placement_group",
    "get_task",
    "get_worker",
    "list_actors",
    "list_jobs",
    "list_nodes",
    "list_objects",
    "list_placement_groups",
    "list_tasks",
    "list_workers",
    "summarize_actors",
    "summarize_objects",
    "summarize_tasks",
]

Filters = Sequence[tuple[str, str, Any]]
_EVERYTHING = 1 << 30


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


class _List(Protocol):
    def __call__(
        self,
        address: str | None = None,
        filters: Filters | None = None,
        limit: int = 100,
        timeout: int = 30,
        detail: bool = False,
        raise_on_missing_output: bool = True,
    ) -> list[StateRow]: ...


class _Get(Protocol):
    def __call__(  # Ray's name for what it takes
        self,
        id: str,  # noqa: A002
        **accepted: Any,
    ) -> StateRow | None: ...


def _lists(rows: Callable[[], Iterable[Mapping[str, Any]]]) -> _List:
    """The public function that chooses among ``rows()``."""

    def choose(
        address: str | None = None,
        filters: Filters | None = None,
        limit: int = 100,
        timeout: int = 30,
        detail: bool = False,
        raise_on_missing_output: bool = True,
    ) -> list[StateRow]:
        return _chosen(rows(), filters, limit)

    choose.__name__ = choose.__qualname__ = rows.__name__.lstrip("_")
    choose.__doc__ = rows.__doc__
    return choose


def _gets(things: _List, key: str) -> _Get:
    """The public function that finds one of ``things`` by its id."""

    def find(id: str, **accepted: Any) -> StateRow | None:  # noqa: A002 - Ray's name
        found = things(filters=[(key, "=", id)], limit=_EVERYTHING)
        return found[-1] if found else None

    find.__name__ = find.__qualname__ = f"get_{key.removesuffix('_id')}"
    find.__doc__ = f"The one whose {key} this is; None if there is none."
    return find


@_lists
def list_actors() -> Iterable[Mapping[str, Any]]:
    """Every actor, oldest first; of the dead, the last 1000."""
    context = skate.get_runtime_context()
    for actor in current().list_actors():
        yield {
            "actor_id": f"{actor.actor_id:032x}",
            "class_name": actor.class_name.rpartition(".")[2],
            "state": actor.state.value,
            "job_id": context.get_job_id(),
            "name": actor.name or "",
            "node_id": context.get_node_id(),
            "pid": actor.pid,
            "ray_namespace": actor.namespace,
            "is_detached": actor.is_detached,
            "num_restarts": actor.num_restarts,
            "death_cause": actor.death_cause or None,
        }


@_lists
def list_tasks() -> Iterable[Mapping[str, Any]]:
    """Calls of functions and methods, oldest first, one row for each attempt.

    As far as the session remembers: the last tens of thousands of each process.
    """
    return _here(current().list_tasks())


@_lists
def list_objects() -> Iterable[Mapping[str, Any]]:
    """What this process owns or holds: the values of refs, and handles of actors."""
    return _here(current().list_objects())


@_lists
def list_workers() -> Iterable[Mapping[str, Any]]:
    """The live processes of the session, the driver first."""
    return _here(current().list_workers())


@_lists
def list_nodes() -> Iterable[Mapping[str, Any]]:
    """The machines."""
    for node in skate.nodes():
        yield {
            "node_id": node["NodeID"],
            "node_ip": "127.0.0.1",
            "node_name": node["NodeManagerHostname"],
            "state": "ALIVE" if node["Alive"] else "DEAD",
            "is_head_node": True,
            "resources_total": node["Resources"],
        }


@_lists
def list_jobs() -> Iterable[Mapping[str, Any]]:
    """The session, which is one job."""
    job_id = skate.get_runtime_context().get_job_id()
    return [{"job_id": job_id, "type": "DRIVER", "status": "RUNNING"}]


@_lists
def list_placement_groups() -> Iterable[Mapping[str, Any]]:
    """Every placement group, removed ones too."""
    rows: Iterable[Mapping[str, Any]] = placement_group_table().values()
    return rows


get_actor = _gets(list_actors, "actor_id")
get_job = _gets(list_jobs, "job_id")
get_node = _gets(list_nodes, "node_id")
get_placement_group = _gets(list_placement_groups, "placement_group_id")
get_task = _gets(list_tasks, "task_id")
get_worker = _gets(list_workers, "worker_id")


def get_objects(id: str, **accepted: Any) -> list[StateRow]:  # noqa: A002 - Ray's name
    """What is known of the object with this id; an empty list if there is none."""
    return list_objects(filters=[("object_id", "=", id)])


def summarize_actors(**accepted: Any) -> dict[str, Any]:
    """How many actors of each class are in which state."""
    summary: dict[str, Any] = {}
    actors = list_actors(limit=_EVERYTHING)
    for actor in actors:
        row = summary.setdefault(
            actor.class_name, {"class_name": actor.class_name, "state_counts": {}}
        )
        _count(row["state_counts"], actor.state)
    return _cluster({"summary": summary, "total_actors": len(actors)})


def summarize_tasks(**accepted: Any) -> dict[str, Any]:
    """How many calls of each function, or method, are in which state, ever."""
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


def summarize_objects(**accepted: Any) -> dict[str, Any]:
    """How many objects this process has, of which kind and state, and their bytes."""
    states: dict[str, int] = {}
    kinds: dict[str, int] = {}
    objects = list_objects(limit=_EVERYTHING)
    for row in objects:
        _count(states, row.task_status)
        _count(kinds, row.reference_type)
    megabytes = sum(row.object_size for row in objects) / 1e6
    of_all = {
        "total_objects": len(objects),
        "total_size_mb": megabytes,
        "total_num_workers": len({row.pid for row in objects}),
        "total_num_nodes": len({row.ip for row in objects}),
        "task_state_counts": states,
        "ref_type_counts": kinds,
    }
    # Where a ref was made is not recorded: as in Ray by default, one row for all.
    summary = {"disabled": of_all} if objects else {}
    return _cluster(
        {
            "summary": summary,
            "total_objects": len(objects),
            "total_size_mb": megabytes,
            "callsite_enabled": False,
            "summary_by": "callsite",
        }
    )


def _here(rows: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Rows of the engine's, with what is the same for all of them."""
    context = skate.get_runtime_context()
    same = {
        "job_id": context.get_job_id(),
        "node_id": context.get_node_id(),
        "ip": "127.0.0.1",
    }
    return ({**row, **same} for row in rows)


def _count(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1


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
    chosen = (StateRow(row) for row in rows if _passes(row, filters or ()))
    return list(islice(chosen, limit))  # to find more of them takes its time


def _passes(row: Mapping[str, Any], filters: Filters) -> bool:
    for key, operator, value in filters:
        if key not in row:
            raise ValueError(f"there is no {key!r} to filter by: {', '.join(row)}.")
        if (str(row[key]).lower() == str(value).lower()) != (operator == "="):
            return False
    return True
