"""Make a folder from which the package is imported with another build of its core.

    python scripts/package_with_core.py build/asan/module build/asan/python

The folder goes on PYTHONPATH. It has a copy of the sources with the other core beside
them, and a ``sitecustomize`` that puts the folder before an editable installation, as
its import hook would find the usual core.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "src" / "skate"
CUSTOMIZE = """\
import sys

sys.meta_path[:] = [
    finder
    for finder in sys.meta_path
    if type(finder).__name__ != "ScikitBuildRedirectingFinder"
]
"""


def main(module: Path, made: Path) -> None:
    """Copy the sources, and the core in ``module``, into ``made``."""
    package = made / "skate"
    shutil.rmtree(package, ignore_errors=True)
    without = shutil.ignore_patterns("_core.*.so", "__pycache__")
    shutil.copytree(SOURCES, package, ignore=without)
    for core in module.glob("_core.*.so"):
        shutil.copy2(core, package)
    (made / "sitecustomize.py").write_text(CUSTOMIZE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
