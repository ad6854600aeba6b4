"""``skate top``, ``skate stack``, ``skate timeline``: look at a running session."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from skate.debug import SessionView, Summary

Pid = Annotated[
    int | None,
    typer.Option(help="Process id of the driver [default: the only session there is]."),
]


def stack(pid: Pid = None) -> None:
    """Print the Python stacks of a session's driver and workers."""
    from skate import debug

    typer.echo(debug.attach(pid).stacks(), nl=False)


def timeline(
    path: Annotated[Path, typer.Argument(help="A new file, such as trace.json.")],
    pid: Pid = None,
) -> None:
    """Write the last events of a session, to be opened in https://ui.perfetto.dev."""
    from skate import debug

    count = debug.attach(pid).timeline(path)
    typer.echo(f"{count} entries in {path}; open it in https://ui.perfetto.dev")


def top(
    pid: Pid = None,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds.")] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Show one interval, and end.")
    ] = False,
) -> None:
    """Show what a session does, by function, until it ends or Ctrl-C."""
    from skate import debug

    view = debug.attach(pid)
    if once or not sys.stdout.isatty():
        _plain(view, interval, once)
    else:
        _live(view, interval)


def _plain(view: SessionView, interval: float, once: bool) -> None:
    earlier = view.summary()
    while True:
        time.sleep(interval)
        if view.ended:
            return
        now = view.summary()
        typer.echo(now.format(earlier))
        if once:
            return
        typer.echo()
        earlier = now


def _live(view: SessionView, interval: float) -> None:
    from rich.live import Live

    earlier = view.summary()
    with Live(screen=True, auto_refresh=False) as live:
        while not view.ended:
            time.sleep(interval)
            now = view.summary()
            live.update(_rich(now, earlier), refresh=True)
            earlier = now


def _rich(now: Summary, earlier: Summary) -> Table:
    from rich.table import Table

    heads, rows = now.table(earlier)
    table = Table(title=now.title(), title_justify="left", expand=True)
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table
