"""The bound: processes side by side that train and do not communicate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..harness import Samples, Timer, Work
from . import training_model as common
from .spawned import CONTEXT, answers


def worker(rank: int, setting: str, barrier: Any, pipe: Any) -> None:
    model = common.make_model(rank)
    backward = common.make_backward(model, setting, rank)
    iteration = common.make_iteration(backward, common.make_sgd(model))
    pipe.send(common.time_windows(iteration, setting, barrier.wait))


def run(target: Any, *arguments: Any, workers: int = common.WORKERS) -> Samples:
    """Each worker in a process of its own; windows of the slowest."""
    barrier = CONTEXT.Barrier(workers)
    return common.slowest(answers(target, workers, *arguments, barrier))


def cases(group: str, timer: Timer) -> Iterator[tuple[str, Work]]:
    yield group, lambda: run(worker, group)

    def alone() -> Samples:
        # The samples are shares of an image of all workers.
        return [common.WORKERS * one for one in run(worker, group, workers=1)]

    yield f"{group}, one worker", alone
