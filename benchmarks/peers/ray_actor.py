"""A Ray actor as the paper has it: one call a batch, by value."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..serving import Case, Window, drive, model_of

STATES = ("arrays",)

# A benchmark sends no usage report.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def does(case: Case) -> bool:
    return case.model == "sleep" or case.clients == 1


class _Model:
    def __init__(self, case: Case) -> None:
        self._model = model_of(case)

    def evaluate(self, states: np.ndarray) -> Any:
        return self._model.evaluate(states)


class _Client:
    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.empty(shape, np.float32)

    def submit(self, states: np.ndarray) -> Callable[[], Any]:
        import ray

        ref = self._actor.evaluate.remote(states)
        return lambda: ray.get(ref)


class _Caller:
    def drive(self, actor: Any, case: Case, seconds: float) -> Window:
        return drive(_Client(actor), case, seconds)


class _Ray:
    def __init__(self, actor: Any, case: Case) -> None:
        self._actor = actor
        self._case = case

    def measure(self, seconds: float) -> list[Window]:
        import ray

        case = self._case
        if case.clients == 1:
            return [drive(_Client(self._actor), case, seconds)]
        cls = ray.remote(num_cpus=0)(_Caller)
        callers = [cls.remote() for _ in range(case.clients)]
        ray.get([caller.__ray_ready__.remote() for caller in callers])
        return ray.get(
            [caller.drive.remote(self._actor, case, seconds) for caller in callers]
        )


@contextmanager
def served(case: Case) -> Iterator[_Ray]:
    import ray

    ray.init(
        num_cpus=len(os.sched_getaffinity(0)),
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    try:
        actor = ray.remote(_Model).remote(case)
        ray.get(actor.__ray_ready__.remote())
        yield _Ray(actor, case)
    finally:
        ray.shutdown()
