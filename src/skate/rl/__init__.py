"""Reinforcement learning on skate's building blocks: a short, readable application."""

from .evaluate import Evaluation as Evaluation
from .evaluate import evaluate as evaluate
from .run_files import load_config as load_config
from .run_files import load_policy as load_policy
from .settings import ESSettings as ESSettings
from .settings import PPOSettings as PPOSettings
from .train_loop import Result as Result
from .train_loop import train as train

__all__ = [
    "ESSettings",
    "Evaluation",
    "PPOSettings",
    "Result",
    "evaluate",
    "load_config",
    "load_policy",
    "train",
]
