"""Whether another process can find an object by its module and name."""

from __future__ import annotations

import sys
from typing import Any


def importable(found_as: Any, module: str | None, qualname: str) -> bool:
    """True if ``module.qualname`` is ``found_as`` wherever ``module`` is imported.

    ``__main__`` and notebooks do not count: other processes have another one, or none.
    Nor do modules that the user asked cloudpickle to pickle by value.
    """
    if module is None or module == "__main__" or "<locals>" in qualname:
        return False
    found: Any = sys.modules.get(module)
    if found is None or getattr(found, "__spec__", None) is None:
        return False
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found is found_as and not by_value(module)


def by_value(module: str) -> bool:
    """True if the user registered ``module``, or a package of it, by value."""
    cloudpickle = sys.modules.get("cloudpickle")
    if cloudpickle is None:
        return False
    names: set[str] = cloudpickle.list_registry_pickle_by_value()
    return any(module == name or module.startswith(f"{name}.") for name in names)
