"""What workers of a cluster must have of this program: skate, and the user's modules.

Ray's ``runtime_env`` carries directories; two are made here, of Python files alone.
"""

from __future__ import annotations

import os
import shutil
import site
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...exceptions import EngineError

PROGRAM = "skate_program"  # the package whose directory holds the user's modules
_MOST_FILES = 2000
_MOST_BYTES = 50 << 20
_SKATE = Path(__file__).parents[2]


@contextmanager
def shipment() -> Iterator[dict[str, Any]]:
    """A ``runtime_env`` for the workers, of files that exist while it is open.

    Raises:
        EngineError: the directory of the script holds too much to send.
    """
    with TemporaryDirectory(prefix="skate-ship-") as stage:
        skate = Path(stage, "skate")
        for file in _SKATE.rglob("*.py"):
            _copy(file, skate / file.relative_to(_SKATE))
        modules = [str(skate)]
        root = program_root()
        if root is not None:
            program = Path(stage, PROGRAM)
            program.mkdir()
            for file in program_files(root):
                _copy(file, program / file.relative_to(root))
            (program / "__init__.py").touch()
            modules.append(str(program))
        yield {"py_modules": modules}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def program_root() -> Path | None:
    """Where the script's own modules are found; None without a script of the user's."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None:
        return None
    root = Path(file).resolve().parent
    package = getattr(main.__spec__, "parent", "") if main.__spec__ else ""
    for _ in filter(None, package.split(".")):  # python -m package.module
        root = root.parent
    installed = [sys.prefix, *site.getsitepackages(), str(_SKATE.parent)]
    return None if any(root.is_relative_to(place) for place in installed) else root


def program_files(root: Path) -> list[Path]:
    """The Python files below ``root``, without hidden and environment directories."""
    found: list[Path] = []
    size = 0
    for directory, names, files in os.walk(root):
        here = Path(directory)
        names[:] = [n for n in names if _is_of_program(here / n)]
        for name in files:
            if name.endswith(".py"):
                found.append(here / name)
                size += found[-1].stat().st_size
        if len(found) > _MOST_FILES or size > _MOST_BYTES:
            raise EngineError(
                f"the program's modules are sent to the cluster's workers, and {root} "
                f"holds more than {_MOST_FILES} Python files, or {_MOST_BYTES >> 20} "
                "MiB of them. Put the script into a directory of its own."
            )
    return found


def _is_of_program(directory: Path) -> bool:
    name = directory.name
    return not (
        name.startswith((".", "__pycache__"))
        or name in ("node_modules", "site-packages")
        or (directory / "pyvenv.cfg").exists()
        or (directory.resolve() == _SKATE)
    )


def shipped_path() -> list[str]:
    """In a worker: where the user's modules arrived, if they were sent."""
    import importlib.util

    spec = importlib.util.find_spec(PROGRAM)
    return list(spec.submodule_search_locations or ()) if spec else []
