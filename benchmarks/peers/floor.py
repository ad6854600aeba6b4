"""The floor: the model called by the client, in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..serving import Case, Window, drive, model_of

STATES = ("arrays",)


def does(case: Case) -> bool:
    return case.clients == 1 and case.in_flight == 1


class _Client:
    def __init__(self, model: Any) -> None:
        self._model = model

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.empty(shape, np.float32)

    def submit(self, states: np.ndarray) -> Callable[[], Any]:
        outputs = self._model.evaluate(states)
        return lambda: outputs


class _Floor:
    def __init__(self, case: Case) -> None:
        self._case = case
        self._client = _Client(model_of(case))

    def measure(self, seconds: float) -> list[Window]:
        return [drive(self._client, self._case, seconds)]


@contextmanager
def served(case: Case) -> Iterator[_Floor]:
    yield _Floor(case)
