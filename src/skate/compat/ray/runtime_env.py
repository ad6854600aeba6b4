"""``ray.runtime_env``: what ``runtime_env=`` takes, under Ray's names."""

from typing import Any

__all__ = ["RuntimeEnv", "RuntimeEnvConfig"]


class RuntimeEnv(dict[str, Any]):
    """A dict of the fields that are given, as Ray's is."""

    def __init__(self, **fields: Any) -> None:
        super().__init__({name: v for name, v in fields.items() if v is not None})


class RuntimeEnvConfig(dict[str, Any]):
    """Accepted: nothing is installed, so nothing takes long."""
