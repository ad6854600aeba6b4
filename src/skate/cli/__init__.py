"""The ``skate`` command: one module for each subcommand."""

from __future__ import annotations

import sys
from typing import NoReturn

INTERRUPTED = 130  # what shells expect of a program that Ctrl-C ended


def end_interrupted() -> NoReturn:
    """End the process as Ctrl-C should."""
    # python -m remembers an interrupt that has left exec(), as of a dataclass in the
    # making, and ends by the signal however that was handled. Another exec() of source
    # makes it forget.
    exec("")
    sys.exit(INTERRUPTED)


def main() -> None:
    """Run the command line; ends the process."""
    try:
        from .app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "click", "rich"):
            raise
        sys.exit(
            f"skate: the command line needs {error.name}, which is not installed: "
            "pip install 'skate[rl]'"
        )
    except KeyboardInterrupt:
        end_interrupted()
    app()
