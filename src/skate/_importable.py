"""Which objects another process finds by their module and name."""

from __future__ import annotations

import sys
from typing import Any


def find_global(module: str | None, qualname: str) -> Any:
    """``module.qualname`` as any process finds it that imports ``module``; else None.

    ``__main__`` and notebooks do not count: other processes have another one, or none.
    Nor do modules that the user asked cloudpickle to pickle by value.
    """
    if module is None or module == "__main__" or "<" in qualname:
        return None
    found: Any = sys.modules.get(module)
    if getattr(found, "__spec__", None) is None or pickled_by_value(module):
        return None
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def pickled_by_value(module: str) -> bool:
    """True if the user registered ``module``, or a package of it, with cloudpickle."""
    cloudpickle = sys.modules.get("cloudpickle")
    if cloudpickle is None:
        return False
    names: set[str] = cloudpickle.list_registry_pickle_by_value()
    return any(module == name or module.startswith(f"{name}.") for name in names)
