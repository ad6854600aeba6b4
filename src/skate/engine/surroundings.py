"""Putting a runtime environment into force in a process, and taking it back."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence

from .._runtime_env import RuntimeEnv
from ..exceptions import RuntimeEnvSetupError

GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
_REFERENCE = re.compile(r"\$(?:([a-z_]\w*)|\{([a-z_]\w*)\})", re.ASCII | re.IGNORECASE)


class Surroundings:
    """The variables, directory and paths that a task finds: those of ``env``.

    Args:
        env: with absolute paths.
        gpus: what it may use; they become ``CUDA_VISIBLE_DEVICES``, unless ``env`` sets
            that itself. With none, the variable is left as it is.
    """

    def __init__(self, env: RuntimeEnv, gpus: Sequence[int | str] = ()) -> None:
        self._env = env
        self._variables = dict(env.env_vars)
        if gpus:
            self._variables.setdefault(GPU_VARIABLE, ",".join(map(str, gpus)))
        self._paths = env.python_path()
        self._before: dict[str, str | None] = {}
        self._added: list[str] = []
        self._came_from: str | None = None

    def __bool__(self) -> bool:
        return bool(self._variables or self._paths)

    def enter(self) -> None:
        """Raises RuntimeEnvSetupError; then nothing has changed."""
        self._env.check_paths()
        try:
            self._enter()
        except (OSError, ValueError) as error:  # a variable may have no valid name
            self.leave()
            raise RuntimeEnvSetupError(
                f"runtime_env={self._env.as_dict()!r} cannot be set up: {error}."
            ) from error

    def _enter(self) -> None:
        variables: dict[str, str] = {}
        # As in Ray, a value may refer to other variables: those that do come last.
        for name in sorted(self._variables, key=lambda n: "$" in self._variables[n]):
            variables[name] = _expanded(self._variables[name], variables)
        own = variables.get("PYTHONPATH", "").split(os.pathsep)
        self._added = [*self._paths, *(os.path.abspath(p) for p in own if p)]
        if self._paths:  # for what it starts
            inherited = variables.get("PYTHONPATH", os.environ.get("PYTHONPATH"))
            paths = [*self._paths, *filter(None, [inherited])]
            variables["PYTHONPATH"] = os.pathsep.join(paths)
        self._before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        sys.path[:0] = self._added
        if self._env.working_dir is not None:
            came_from = os.getcwd()
            os.chdir(self._env.working_dir)
            self._came_from = came_from
        if "TZ" in variables:
            time.tzset()

    def leave(self) -> None:
        """As it was before ``enter``."""
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for path in self._added:
            if path in sys.path:
                sys.path.remove(path)
        if self._came_from is not None:
            os.chdir(self._came_from)
            self._came_from = None
        if "TZ" in self._before:
            time.tzset()
        self._before, self._added = {}, []


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    """With other variables in the place of their names; all else stays as it is."""

    def value_of(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        return variables.get(name, os.environ.get(name, found[0]))

    return _REFERENCE.sub(value_of, text)
