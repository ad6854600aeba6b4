"""``skate doctor``: what would run where, and why not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
import time
from typing import Annotated, Any

import typer

import skate
from skate.exceptions import EngineError

_WIDTH = 10


def doctor(
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster; default: RAY_ADDRESS.")
    ] = None,
) -> None:
    """Try each engine with one task; say which work, and what the others lack."""
    typer.echo(
        f"skate {skate.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}"
    )
    address = address or os.environ.get("RAY_ADDRESS")
    trouble = {
        "embedded": _try("embedded"),
        "inline": _try("inline"),
        "ray": _try_ray(address),
    }
    _tell("torch", _torch())
    chosen = os.environ.get("SKATE_ENGINE") or "embedded"
    if trouble.get(chosen, True):
        sys.exit(f"skate: engine={chosen!r}, which would be used, does not work.")


def _tell(name: str, text: str) -> None:
    typer.echo(f"{name:{_WIDTH}}{text}")


def _try(engine: str, **options: Any) -> bool:
    """Run a task on ``engine`` and tell of it; True if that failed."""
    try:
        with skate.init(engine, **options) as session:
            skate.get(_nothing.remote())
            started = time.perf_counter()
            skate.get(_nothing.remote())
            took_ms = (time.perf_counter() - started) * 1e3
            _tell(
                engine, f"works: {session.num_cpus} CPUs, {took_ms:.3f} ms for a task"
            )
            for node in skate.nodes() if engine == "ray" else ():
                _tell("", _describe(node))
    except (EngineError, OSError, ValueError) as error:
        _tell(engine, f"does not work: {error}")
        return True
    return False


def _try_ray(address: str | None) -> bool:
    if importlib.util.find_spec("ray") is None:
        _tell("ray", "does not work: Ray is not installed. pip install 'skate[ray]'")
        return True
    if address is None:
        version = importlib.metadata.version("ray")
        _tell("ray", f"Ray {version} is installed; it would be started on this machine")
        return False
    return _try("ray", address=address)


@skate.remote(num_cpus=0)
def _nothing() -> None:
    """What every engine can do."""


@skate.remote(num_cpus=0)
def _versions() -> str:
    """Of the machine that runs it."""
    found = [f"Python {platform.python_version()}"]
    for name in ("ray", "numpy", "torch"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def _describe(node: dict[str, Any]) -> str:
    name = node.get("NodeManagerAddress", node["NodeManagerHostname"])
    if not node["Alive"]:
        return f"{name}: is gone"
    amounts = ", ".join(f"{n:g} {key}" for key, n in sorted(node["Resources"].items()))
    there = _versions.options(resources={f"node:{name}": 0.001})
    return f"{name}: {amounts or 'no resources'}; {skate.get(there.remote())}"


def _torch() -> str:
    try:
        import torch
    except ImportError:
        return "is not installed: no skate.train.torch, and no groups on engine='ray'"
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"{torch.__version__}, {gpus} GPUs"
