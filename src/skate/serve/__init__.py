"""Serve a model to the program that made it: batched, versioned, updated in place."""

from .deployment import Answer as Answer
from .deployment import Deployment as Deployment
from .deployment import deploy as deploy
from .replica import Model as Model
from .replica import QueueFullError as QueueFullError

__all__ = ["Answer", "Deployment", "Model", "QueueFullError", "deploy"]
