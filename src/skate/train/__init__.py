"""Train on several ranks: one loop, collectives, reports and checkpoints."""

from .checkpoint import NAME as CHECKPOINT
from .checkpoint import load as load_checkpoint
from .context import Context as Context
from .context import context as context
from .optimizers import SGD as SGD
from .optimizers import Adam as Adam
from .optimizers import Rows as Rows
from .parameter_server import ParameterServer as ParameterServer
from .result import Result as Result
from .run import run as run
from .server_worker import ServerWorker as ServerWorker
from .shard import ShardStats as ShardStats

__all__ = [
    "CHECKPOINT",
    "SGD",
    "Adam",
    "Context",
    "ParameterServer",
    "Result",
    "Rows",
    "ServerWorker",
    "ShardStats",
    "context",
    "load_checkpoint",
    "run",
]
