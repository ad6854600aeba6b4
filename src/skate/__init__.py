"""skate: tasks and actors for machine learning on one machine.

>>> import skate
>>> @skate.remote
... def square(x):
...     return x * x
>>> skate.get([square.remote(i) for i in range(4)])
[0, 1, 4, 9]
"""

from . import exceptions as exceptions
from ._actor import ActorClass as ActorClass
from ._actor import ActorHandle as ActorHandle
from ._actor import ActorMethod as ActorMethod
from ._actor import get_actor as get_actor
from ._actor import kill as kill
from ._actor import method as method
from ._actor import receiver as receiver
from ._context import RuntimeContext as RuntimeContext
from ._context import get_gpu_ids as get_gpu_ids
from ._context import get_runtime_context as get_runtime_context
from ._gather import as_completed as as_completed
from ._gather import map_unordered as map_unordered
from ._observe import summary as summary
from ._observe import timeline as timeline
from ._observe import why as why
from ._progress import progress as progress
from ._ref import ObjectRef as ObjectRef
from ._runtime import Session as Session
from ._runtime import available_resources as available_resources
from ._runtime import cancel as cancel
from ._runtime import cluster_resources as cluster_resources
from ._runtime import empty as empty
from ._runtime import get as get
from ._runtime import init as init
from ._runtime import is_initialized as is_initialized
from ._runtime import lend as lend
from ._runtime import nodes as nodes
from ._runtime import put as put
from ._runtime import shutdown as shutdown
from ._runtime import wait as wait
from ._stream import ObjectRefGenerator as ObjectRefGenerator
from ._task import RemoteFunction as RemoteFunction
from ._task import remote as remote
from .engine.protocol import ReceivedCall as ReceivedCall

__version__ = "0.1.0.dev0"

__all__ = [
    "ActorClass",
    "ActorHandle",
    "ActorMethod",
    "ObjectRef",
    "ObjectRefGenerator",
    "ReceivedCall",
    "RemoteFunction",
    "RuntimeContext",
    "Session",
    "as_completed",
    "available_resources",
    "cancel",
    "cluster_resources",
    "empty",
    "exceptions",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "lend",
    "map_unordered",
    "method",
    "nodes",
    "progress",
    "put",
    "receiver",
    "remote",
    "shutdown",
    "summary",
    "timeline",
    "wait",
    "why",
]

for _name in __all__:
    if _name != "exceptions":
        globals()[_name].__module__ = __name__
del _name
