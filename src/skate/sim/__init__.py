"""Run simulators at scale: many configurations, or many environments and a policy."""

from .dispatch import RunTimeoutError as RunTimeoutError
from .rollout import Env as Env
from .rollout import Rollouts as Rollouts
from .rollout import Trajectory as Trajectory
from .rollout import make_env as make_env
from .rollout import rollouts as rollouts
from .run import FailedRun as FailedRun
from .run import Partial as Partial
from .run import Run as Run
from .run import run as run

__all__ = [
    "Env",
    "FailedRun",
    "Partial",
    "Rollouts",
    "Run",
    "RunTimeoutError",
    "Trajectory",
    "make_env",
    "rollouts",
    "run",
]
