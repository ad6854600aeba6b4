"""Runtime environments: what the process of a task has of its own.

Variables, a working directory, and modules; Ray's other fields need other
interpreters, which no engine of this machine starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from ._exact import exact
from .exceptions import RuntimeEnvSetupError

# Ray's, for clusters: environments that are built, or that start another Python.
CLUSTER_FIELDS = (
    "conda",
    "container",
    "image_uri",
    "java_jars",
    "mpi",
    "nsight",
    "pip",
    "py_executable",
    "uv",
    "worker_process_setup_hook",
    "_nsight",
    "_rocprof_sys",
)
# Ray's, without effect where nothing is copied or installed.
ACCEPTED_FIELDS = ("config", "excludes", "_inject_current_ray", "_ray_commit")
_FIELDS = ("env_vars", "working_dir", "py_modules")


@dataclass(frozen=True, slots=True)
class RuntimeEnv:
    """What was given as ``runtime_env``, checked. Equal ones may share a process."""

    env_vars: tuple[tuple[str, str], ...] = ()  # sorted by name
    working_dir: str | None = None
    py_modules: tuple[str, ...] = ()
    # What only Ray has: field -> value, as it was given.
    others: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __bool__(self) -> bool:
        return self != NO_ENV or bool(self.others)

    def over(self, outer: RuntimeEnv) -> RuntimeEnv:
        """This one inside ``outer``: variables are merged, other fields replaced."""
        return RuntimeEnv(
            tuple(sorted({**dict(outer.env_vars), **dict(self.env_vars)}.items())),
            self.working_dir or outer.working_dir,
            self.py_modules or outer.py_modules,
            {**outer.others, **self.others},
        )

    def here(self, engine: str) -> RuntimeEnv:
        """For an engine of this machine: paths made absolute, the rest left out.

        Raises:
            ValueError: a field needs a cluster.
        """
        wanted = [name for name in self.others if name in CLUSTER_FIELDS]
        if wanted:
            raise ValueError(
                f"runtime_env[{wanted[0]!r}] needs engine='ray': engine={engine!r} "
                "installs nothing and runs this Python. It has env_vars, working_dir "
                "and py_modules."
            )
        paths = [*filter(None, [self.working_dir]), *self.py_modules]
        packed = [p for p in paths if "://" in p or p.endswith((".zip", ".whl"))]
        if packed:
            raise ValueError(
                f"runtime_env: {packed[0]!r} needs engine='ray': engine={engine!r} "
                "takes directories of this machine, and fetches or unpacks nothing."
            )
        directory = self.working_dir and os.path.abspath(self.working_dir)
        return RuntimeEnv(
            self.env_vars, directory, tuple(map(os.path.abspath, self.py_modules))
        )

    def check_paths(self) -> None:
        """Raises RuntimeEnvSetupError if one of the paths does not exist."""
        if self.working_dir is not None and not os.path.isdir(self.working_dir):
            raise RuntimeEnvSetupError(
                f"runtime_env: the working_dir {self.working_dir!r} is no directory. "
                "Make it first, or correct the path."
            )
        for path in self.py_modules:
            if not os.path.exists(path):
                raise RuntimeEnvSetupError(
                    f"runtime_env: there is no {path!r}, which py_modules names. Give "
                    "the directory of a package, or a .py file."
                )

    def python_path(self) -> list[str]:
        """Where its modules are found, in front of everything else."""
        parents = [os.path.dirname(path) for path in self.py_modules]
        return list(dict.fromkeys([*filter(None, [self.working_dir]), *parents]))

    def as_dict(self) -> dict[str, Any]:
        """As it is given to ``runtime_env``."""
        found = {
            "env_vars": dict(self.env_vars),
            "working_dir": self.working_dir,
            "py_modules": list(self.py_modules),
            **self.others,
        }
        return {name: value for name, value in found.items() if value}


NO_ENV = RuntimeEnv()


def check_runtime_env(name: str, value: Any) -> RuntimeEnv:
    """``value`` as a runtime environment.

    Raises:
        TypeError: it, or one of its fields, has a wrong type.
        ValueError: it has a field that does not exist.
    """
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name} must be a dict, such as {{'env_vars': {{'A': '1'}}}}, not "
            f"{value!r} of type {type(value).__name__}."
        )
    known = (*_FIELDS, *CLUSTER_FIELDS, *ACCEPTED_FIELDS)
    for key in value:
        if key not in known:
            import difflib  # only to help

            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there is {known!r}."
            raise ValueError(f"unknown field {key!r} in {name}: {hint}")
    others = {key: v for key, v in value.items() if key not in _FIELDS}
    return RuntimeEnv(
        _env_vars(f"{name}['env_vars']", value.get("env_vars") or {}),
        _working_dir(f"{name}['working_dir']", value.get("working_dir")),
        _py_modules(f"{name}['py_modules']", value.get("py_modules") or ()),
        {key: v for key, v in others.items() if v is not None},
    )


def _env_vars(name: str, value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict of strings, not {value!r}.")
    for key, text in value.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(
                f"{name} must be a dict from strings to strings, and has "
                f"{key!r}: {text!r}."
            )
    return tuple(sorted(value.items()))


def _working_dir(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be the path of a directory, not {value!r}.")
    path: str = exact(os.fspath(value))
    return path


def _py_modules(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, (str, os.PathLike)) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list of paths or modules, not {value!r}.")
    return tuple(_path_of(name, module) for module in value)


def _path_of(name: str, module: Any) -> str:
    if isinstance(module, ModuleType):
        paths = list(getattr(module, "__path__", None) or [module.__file__])
        if len(paths) != 1 or paths[0] is None:
            raise ValueError(
                f"{name}: {module.__name__} is not in one place: {paths!r}."
            )
        found: str = exact(str(paths[0]))
        return found
    if not isinstance(module, (str, os.PathLike)):
        raise TypeError(f"{name} must list paths or imported modules, not {module!r}.")
    path: str = exact(os.fspath(module))
    return path
