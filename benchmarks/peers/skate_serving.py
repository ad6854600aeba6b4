"""skate.serve: a deployment whose clients are the driver or tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import skate
from skate import serve

from ..serving import Case, Window, drive, model_of

STATES = ("arrays", "store")


def does(case: Case) -> bool:
    return True


class Served:
    """Makes the model where it is served."""

    def __init__(self, case: Case) -> None:
        self._model = model_of(case)

    def evaluate(self, states: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = self._model.evaluate(states)
        return outputs

    def set_weights(self, weights: Any) -> None:
        self._model.set_weights(weights)


class _Client:
    def __init__(self, deployment: serve.Deployment, case: Case) -> None:
        self._deployment = deployment
        self._in_store = case.states == "store"
        self._blocks = case.in_flight == 1

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        if self._in_store:
            return skate.empty(shape, np.float32)
        return np.empty(shape, np.float32)

    def submit(self, states: np.ndarray) -> Callable[[], Any]:
        if self._blocks:
            outputs = self._deployment.evaluate(states)
            return lambda: outputs
        return self._deployment.submit(states).result


@skate.remote(num_cpus=0)
class Caller:
    """A client in a process of its own."""

    def drive(self, deployment: serve.Deployment, case: Case, seconds: float) -> Window:
        return drive(_Client(deployment, case), case, seconds)


class _Skate:
    def __init__(self, deployment: serve.Deployment, case: Case) -> None:
        self.deployment = deployment
        self._case = case

    def measure(self, seconds: float) -> list[Window]:
        case = self._case
        if case.clients == 1:
            return [drive(_Client(self.deployment, case), case, seconds)]
        callers = [Caller.remote() for _ in range(case.clients)]
        skate.get([caller.__ray_ready__.remote() for caller in callers])
        return skate.get(
            [caller.drive.remote(self.deployment, case, seconds) for caller in callers]
        )


@contextmanager
def served(case: Case) -> Iterator[_Skate]:
    skate.init("embedded", num_cpus=len(os.sched_getaffinity(0)))
    try:
        with serve.deploy(Served, case) as deployment:
            yield _Skate(deployment, case)
    finally:
        skate.shutdown()
