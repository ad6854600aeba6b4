"""``skate bench``: the benchmarks of a checkout, which packages do not contain."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

import skate

_HELPERS = {"__init__", "harness", "training_picture", "windows"}


def bench(
    context: typer.Context,
    question: Annotated[
        str | None, typer.Argument(help="Such as engine; without it, all are listed.")
    ] = None,
) -> None:
    """Ask a benchmark QUESTION; what follows its name is its own (try --help)."""
    root = _checkout()
    folder = root / "benchmarks"
    known = sorted(
        path.stem for path in folder.glob("*.py") if path.stem not in _HELPERS
    )
    if question is None:
        typer.echo(f"questions in {folder}: {', '.join(known)}")
        return
    if question not in known:
        raise ValueError(
            f"{folder} has no benchmark {question!r}; it has {', '.join(known)}."
        )
    command = [sys.executable, "-m", f"benchmarks.{question}", *context.args]
    sys.exit(subprocess.run(command, cwd=root, check=False).returncode)


def _checkout() -> Path:
    """The repository: around the current directory, else around skate's sources."""
    here = Path.cwd()
    for root in (here, *here.parents, Path(skate.__file__).resolve().parents[2]):
        if (root / "benchmarks" / "harness.py").exists() and (
            root / "src" / "skate"
        ).exists():
            return root
    raise ValueError(
        "benchmarks are part of skate's repository, not of the installed package: "
        f"there is none around {here}. Clone it and run this command there."
    )
