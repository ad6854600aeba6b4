"""Workers in processes of their own, each of which sends one answer."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

CONTEXT = multiprocessing.get_context("spawn")
END_S = 10.0  # they have sent their answers by then


def answers(worker: Callable[..., None], workers: int, *arguments: Any) -> list[Any]:
    """What ``worker(rank, *arguments, pipe)`` sends into its pipe, by rank."""
    pipes = [CONTEXT.Pipe(False) for _ in range(workers)]
    processes = [
        CONTEXT.Process(target=worker, args=(rank, *arguments, pipe))
        for rank, (_, pipe) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    for _, pipe in pipes:
        pipe.close()
    try:
        return [reader.recv() for reader, _ in pipes]
    finally:
        for process in processes:
            process.join(END_S)
            process.kill()
