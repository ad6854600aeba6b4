"""Client processes of the serving peers that know nothing of processes themselves."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from ..serving import Case, Window, drive


def measure(
    case: Case, seconds: float, connect: Callable[..., Any], *address: Any
) -> list[Window]:
    """Drive ``connect(*address)`` from ``case.clients`` processes at the same time."""
    if case.clients == 1:
        return [drive(connect(*address), case, seconds)]
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(case.clients)
    with spawn.Pool(
        case.clients, initializer=_keep, initargs=(barrier, connect, address)
    ) as pool:
        return pool.starmap(_drive, [(case, seconds)] * case.clients, chunksize=1)


def _keep(barrier: Any, connect: Callable[..., Any], address: tuple[Any, ...]) -> None:
    global _kept
    _kept = barrier, connect, address


def _drive(case: Case, seconds: float) -> Window:
    barrier, connect, address = _kept
    client = connect(*address)
    barrier.wait(60)
    return drive(client, case, seconds)


_kept: Any = None
