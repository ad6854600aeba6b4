"""``skate serve``: a model behind HTTP."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

import skate


def serve(
    model: Annotated[str, typer.Argument(help="MODULE:CLASS, such as models:Policy.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Of the class, as strings.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any that is free.")] = 8000,
    name: Annotated[str, typer.Option(help="Of the model, in URLs.")] = "model",
    token: Annotated[
        str, typer.Option(help="What clients must send [default: made up].")
    ] = "",
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Ask for no token.")
    ] = False,
    replicas: Annotated[int, typer.Option(help="Processes with the model.")] = 1,
    max_batch_size: Annotated[int, typer.Option(help="States in a call.")] = 64,
    batch_wait_s: Annotated[
        float, typer.Option(help="That a small request waits for others.")
    ] = 0.0,
    max_queued: Annotated[int, typer.Option(help="States that may wait.")] = 1024,
    engine: Annotated[
        str | None, typer.Option(help="embedded, inline or ray [default: embedded].")
    ] = None,
) -> None:
    """Serve MODEL, a class with evaluate(states), over HTTP until Ctrl-C."""
    from skate import serve as serving

    served, given = _load(model, arguments or [])
    with skate.init(engine):
        deployment = serving.deploy(
            served,
            *given,
            num_replicas=replicas,
            max_batch_size=max_batch_size,
            batch_wait_s=batch_wait_s,
            max_queued=max_queued,
        )
        with (
            deployment,
            serving.http(
                deployment, host, port, None if no_token else token, name=name
            ) as server,
            _terminated_as_interrupted(),
        ):
            typer.echo(f"{name} at {server.url}/v2/models/{name}/infer")
            typer.echo(f"to try it: {server.url}/docs")
            if server.token is not None:
                typer.echo(f"token: {server.token}")
            sys.stdout.flush()
            server.wait()


def _load(model: str, arguments: list[str]) -> tuple[Any, list[Any]]:
    """The class, and what it is made with."""
    if ":" not in model:
        raise ValueError(
            f"{model!r} names no model; expected MODULE:CLASS, such as "
            "my_package.models:Policy."
        )
    module_name, _, class_name = model.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    module = importlib.import_module(module_name)
    found: Any = module
    for part in class_name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"{module_name} has no {class_name!r}.{hint}")
        found = getattr(found, part)
    return found, list(arguments)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end the program as Ctrl-C does: what runs is answered first."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
