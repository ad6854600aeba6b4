"""Train on several ranks: one loop, collectives, reports and checkpoints."""

from .checkpoint import NAME as CHECKPOINT
from .checkpoint import load as load_checkpoint
from .context import Context as Context
from .context import context as context
from .run import Result as Result
from .run import run as run

__all__ = ["CHECKPOINT", "Context", "Result", "context", "load_checkpoint", "run"]
