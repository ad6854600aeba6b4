"""``ray.util.joblib``."""

from skate.util.joblib import register

__all__ = ["register_ray"]


def register_ray() -> None:
    """Let joblib use skate under Ray's name: ``parallel_config(backend="ray")``."""
    register("ray")
