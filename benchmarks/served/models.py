"""The models that the serving question serves, and the states that its clients send."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

BATCH = 64
OUTPUTS = 8


@dataclass(frozen=True)
class Row:
    """One row of table 3 of the Ray paper: a batch of 64 states, and its time."""

    name: str
    width: int  # float32 values a state
    seconds: float  # of an evaluation

    @property
    def bound(self) -> float:
        """States a second that an exact model evaluates when it never waits."""
        return BATCH / self.seconds


ROWS = {
    "small": Row("small", 1024, 0.010),  # 4 KB a state
    "large": Row("large", 25_600, 0.005),  # 100 KB a state
}


def states_of(row: Row, rows: int = BATCH) -> np.ndarray:
    """Different in each row, so that mixed-up answers are seen."""
    states = np.zeros((rows, row.width), np.float32)
    states[:, 0] = np.arange(rows)
    return states


class Sleep:
    """An accelerator does the work: answers at an exact deadline, the CPU left free.

    It sleeps until shortly before the deadline and spins for the rest, since a timer
    wakes 30 to 130 us late. It reads 8 values a state, and takes one batch at a time:
    a server that calls it in two threads has no second accelerator.
    """

    SPIN_S = 0.0004

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.weights: Any = None
        self._free = threading.Lock()

    def evaluate(self, states: np.ndarray) -> np.ndarray:
        with self._free:
            return self._evaluate(states)

    def _evaluate(self, states: np.ndarray) -> np.ndarray:
        deadline = time.perf_counter() + self.seconds
        outputs = states[:, :OUTPUTS].copy()
        rest = deadline - time.perf_counter() - self.SPIN_S
        if rest > 0:
            time.sleep(rest)
        while time.perf_counter() < deadline:
            pass
        return outputs

    def set_weights(self, weights: Any) -> None:
        self.weights = weights


class Torch:
    """A real network on one thread: residual for small, fully connected for large."""

    def __init__(self, row: Row, layers: int) -> None:
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.torch = torch
        nn = torch.nn

        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first = nn.Linear(1024, 1024)
                self.second = nn.Linear(1024, 1024)

            def forward(self, x: Any) -> Any:
                return x + self.second(torch.relu(self.first(x)))

        hidden: list[Any] = []
        if row.name == "small":
            hidden = [Residual() for _ in range(layers)]
            width = row.width
        else:
            width = 64
            hidden = [nn.Linear(row.width, width), nn.ReLU()]
            for _ in range(layers):
                hidden += [nn.Linear(width, width), nn.ReLU()]
        self.net = nn.Sequential(*hidden, nn.Linear(width, OUTPUTS))

    def evaluate(self, states: np.ndarray) -> np.ndarray:
        import warnings

        with self.torch.inference_mode(), warnings.catch_warnings():
            # The states are read-only where they were not copied; torch cannot say so.
            warnings.simplefilter("ignore")
            outputs: np.ndarray = self.net(self.torch.from_numpy(states)).numpy()
        return outputs


def make(kind: str, row: Row, layers: int = 1) -> Any:
    """``sleep`` or ``torch``."""
    return Sleep(row.seconds) if kind == "sleep" else Torch(row, layers)


def calibrate(row: Row) -> int:
    """How many layers bring the torch model nearest to the row's time."""
    states = states_of(row)

    def cost(layers: int) -> float:
        model = make("torch", row, layers)
        model.evaluate(states)
        took = []
        for _ in range(15):
            start = time.perf_counter()
            model.evaluate(states)
            took.append(time.perf_counter() - start)
        return sorted(took)[len(took) // 2]

    few, many = 1, 9
    one = cost(few)
    each = max((cost(many) - one) / (many - few), 1e-6)
    return max(1, few + round((row.seconds - one) / each))
