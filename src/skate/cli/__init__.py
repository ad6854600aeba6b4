"""The ``skate`` command: one module for each subcommand."""

from __future__ import annotations

import sys

INTERRUPTED = 130  # what shells expect of a program that Ctrl-C ended


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
        sys.exit(INTERRUPTED)
    app()
