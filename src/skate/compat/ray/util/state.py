"""``ray.util.state``."""

from skate.util.state import (
    get_actor,
    get_job,
    get_node,
    get_placement_group,
    list_actors,
    list_jobs,
    list_nodes,
    list_placement_groups,
    summarize_actors,
    summarize_tasks,
)

__all__ = [
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
