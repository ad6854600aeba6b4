"""Run simulators at scale: many configurations, or many environments and a policy."""

from .batch import RolloutError as RolloutError
from .dispatch import RunTimeoutError as RunTimeoutError
from .env import Env as Env
from .env import make_env as make_env
from .rollout import Rollouts as Rollouts
from .rollout import rollouts as rollouts
from .run import FailedRun as FailedRun
from .run import Partial as Partial
from .run import Run as Run
from .run import run as run
from .trajectory import Trajectory as Trajectory

__all__ = [
    "Env",
    "FailedRun",
    "Partial",
    "RolloutError",
    "Rollouts",
    "Run",
    "RunTimeoutError",
    "Trajectory",
    "make_env",
    "rollouts",
    "run",
]
