"""Run simulators at scale: many configurations, or many environments and a policy."""

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from .vector_env import VectorEnv as VectorEnv
    from .vector_worker import EnvError as EnvError

__all__ = [
    "Env",
    "EnvError",
    "FailedRun",
    "Partial",
    "RolloutError",
    "Rollouts",
    "Run",
    "RunTimeoutError",
    "Trajectory",
    "VectorEnv",
    "make_env",
    "rollouts",
    "run",
]


def __getattr__(name: str) -> Any:
    # These need gymnasium, which the rest does not.
    if name not in ("EnvError", "VectorEnv"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .vector_env import VectorEnv
        from .vector_worker import EnvError
    except ImportError as error:
        raise ImportError(
            "sim.VectorEnv needs gymnasium, which is not installed: "
            "pip install 'skate[rl]'"
        ) from error
    return {"EnvError": EnvError, "VectorEnv": VectorEnv}[name]
