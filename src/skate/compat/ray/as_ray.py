"""Importing this makes ``import ray`` mean ``skate.compat.ray``, in workers too.

``python -m skate.compat.ray`` does it for a script; in a test suite, import it first.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from .missing import LIBRARIES, explain


class _Finder(MetaPathFinder):
    """Finds ``ray.x`` as ``skate.compat.ray.x``, also where the real Ray is there."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        # The second name is asked for by `from ray import data`.
        parts = fullname.removeprefix("skate.compat.").split(".")
        if parts[0] != "ray":
            return None
        if len(parts) > 1 and parts[1] in LIBRARIES:
            raise ImportError(explain(".".join(parts)), name=fullname)
        if fullname.startswith("skate."):
            return None
        real = f"skate.compat.{fullname}"
        if importlib.util.find_spec(real) is None:
            raise ModuleNotFoundError(
                f"No module named {fullname!r} in skate.compat.ray, which stands for "
                "ray in this process; see docs/reference/differences-from-ray.md.",
                name=fullname,
            )
        return ModuleSpec(fullname, _Alias(real))


class _Alias(Loader):
    """Gives the same module under a second name."""

    def __init__(self, real: str) -> None:
        self._real = real
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._real)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has set that of the alias
        # What is loaded has its place in the package already, which may be another
        # thing's by now: ray.util.placement_group is a function and a module.
        for name, loaded in list(sys.modules.items()):
            if name.startswith("skate.compat.ray."):
                sys.modules.setdefault(name.removeprefix("skate.compat."), loaded)


def _install() -> None:
    loaded = sys.modules.get("ray")
    if loaded is not None and loaded.__name__ == "ray":
        raise ImportError(
            "the real ray was imported before skate.compat.ray.as_ray, which stands in "
            "for it: import that first."
        )
    sys.meta_path.insert(0, _Finder())
    # Workers import what this variable names before anything else.
    names = os.environ.get("SKATE_PRELOAD", "").split(",")
    if __name__ not in names:
        names = [*filter(None, names), __name__]
        os.environ["SKATE_PRELOAD"] = ",".join(names)


_install()
