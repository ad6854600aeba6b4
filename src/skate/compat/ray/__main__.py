"""``python -m skate.compat.ray script.py args...``: run a Ray program on skate."""

from __future__ import annotations

import argparse
import builtins
import os
import runpy
import sys
from types import ModuleType


def main(arguments: list[str] | None = None) -> None:
    """Run a script, or ``-m module``, as Python itself would."""
    parser = argparse.ArgumentParser(
        prog="python -m skate.compat.ray",
        description="Run an unchanged Ray program on skate.",
        allow_abbrev=False,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("-m", dest="module", help="a module to run as a script")
    which.add_argument("script", nargs="?", help="a file to run")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="for the program")
    options, rest = _split(sys.argv[1:] if arguments is None else arguments)
    parsed = parser.parse_args(options)
    from . import as_ray  # noqa: F401  # from now on, `import ray` is skate's

    if parsed.module is not None:
        sys.argv = [parsed.module, *rest]
        runpy.run_module(parsed.module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [parsed.script, *rest]
        sys.path[0] = os.path.dirname(os.path.realpath(parsed.script))
        _run_script(parsed.script)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What is for this program, and what is for the one that it runs."""
    ours = 2 if arguments[:1] == ["-m"] else 1
    return arguments[:ours], arguments[ours:]


def _run_script(path: str) -> None:
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec")
    # A module of its own, so that it stays alive until the process ends, as any
    # __main__ does: exit handlers and threads still need it.
    main_module = ModuleType("__main__")
    main_module.__file__ = path
    main_module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main_module
    exec(code, main_module.__dict__)


if __name__ == "__main__":
    main()
