"""Serve a model to the program that made it: batched, versioned, updated in place."""

from .answer import Answer as Answer
from .deployment import Deployment as Deployment
from .deployment import deploy as deploy
from .door import HttpServer as HttpServer
from .door import http as http
from .errors import DrainingError as DrainingError
from .errors import QueueFullError as QueueFullError
from .errors import ServeError as ServeError
from .errors import StatesError as StatesError
from .errors import UnknownClientError as UnknownClientError
from .errors import UnknownModelError as UnknownModelError
from .prometheus import register_prometheus as register_prometheus
from .served import Model as Model

__all__ = [
    "Answer",
    "Deployment",
    "DrainingError",
    "HttpServer",
    "Model",
    "QueueFullError",
    "ServeError",
    "StatesError",
    "UnknownClientError",
    "UnknownModelError",
    "deploy",
    "http",
    "register_prometheus",
]
