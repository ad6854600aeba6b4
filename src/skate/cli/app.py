"""The subcommands together, and how their errors are shown."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TypeVar

import typer

from skate.exceptions import SkateError

from . import end_interrupted
from .bench import bench
from .doctor import doctor
from .evaluate import evaluate
from .observe import stack, timeline, top
from .serve import serve
from .train import train

F = TypeVar("F", bound=Callable[..., None])


def polite(command: F) -> F:
    """Show a user's mistake as one line, and leave tracebacks to failures."""

    @functools.wraps(command)
    def run(*args: object, **kwargs: object) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            end_interrupted()
        except (ImportError, OSError, ValueError) as error:
            if isinstance(error, SkateError):  # raised inside a task: show where
                raise
            sys.exit(f"skate: {error}")

    return run  # type: ignore[return-value]


app = typer.Typer(
    name="skate",
    help="Simulate, serve and train in one program.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(polite(train))
app.command()(polite(evaluate))
app.command()(polite(serve))
app.command()(polite(top))
app.command()(polite(stack))
app.command()(polite(timeline))
app.command()(polite(doctor))
app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)(polite(bench))
