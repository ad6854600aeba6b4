"""What Ray has in ``ray.util``, under the same names.

Here: ``ActorPool``, ``as_completed``, ``map_unordered``, ``inspect_serializability``,
``register_serializer``, ``list_named_actors``, ``log_once``, ... In modules of their
own: ``queue``, ``multiprocessing``, ``joblib``, ``metrics``, ``state``,
``placement_group``, ``scheduling_strategies``.
"""

from .actor_pool import ActorPool as ActorPool
from .debug import disable_log_once_globally as disable_log_once_globally
from .debug import enable_periodic_logging as enable_periodic_logging
from .debug import log_once as log_once
from .gather import as_completed as as_completed
from .gather import map_unordered as map_unordered
from .names import list_named_actors as list_named_actors
from .network import get_node_ip_address as get_node_ip_address
from .placement_group import get_current_placement_group as get_current_placement_group
from .placement_group import get_placement_group as get_placement_group
from .placement_group import placement_group as placement_group
from .placement_group import placement_group_table as placement_group_table
from .placement_group import remove_placement_group as remove_placement_group
from .serialization import deregister_serializer as deregister_serializer
from .serialization import inspect_serializability as inspect_serializability
from .serialization import register_serializer as register_serializer

__all__ = [
    "ActorPool",
    "as_completed",
    "deregister_serializer",
    "disable_log_once_globally",
    "enable_periodic_logging",
    "get_current_placement_group",
    "get_node_ip_address",
    "get_placement_group",
    "inspect_serializability",
    "list_named_actors",
    "log_once",
    "map_unordered",
    "placement_group",
    "placement_group_table",
    "register_serializer",
    "remove_placement_group",
]
