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

__all__ = [
    "ActorPool",
    "as_completed",
    "disable_log_once_globally",
    "enable_periodic_logging",
    "log_once",
    "map_unordered",
]
