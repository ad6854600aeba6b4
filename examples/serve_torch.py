"""Serve a torch model; two batches in flight, born in the object store."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import skate
from skate import serve


class Network:
    """A small network on one thread of the CPU."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2)
        )

    def evaluate(self, states: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            # A copy: torch cannot be told that the states are read-only.
            outputs: np.ndarray = self.net(torch.tensor(states)).numpy()
        return outputs

    def set_weights(self, weights: dict[str, Any]) -> None:
        own = self.net.state_dict()
        if {k: np.shape(v) for k, v in weights.items()} != shapes(own):
            raise ValueError("these are not the weights of this network")
        self.net.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})


def shapes(weights: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}


def batches(number: int) -> Iterator[np.ndarray]:
    slots = [skate.empty((64, 8), np.float32) for _ in range(3)]
    for step in range(number):
        states = slots[step % 3]
        states[:] = step
        yield states


def main() -> None:
    skate.init(preload=["torch"], ignore_reinit_error=True)
    with serve.deploy(Network) as deployment:
        for outputs in deployment.map(batches(5)):
            print(np.round(outputs[0], 2))
        zero = {
            k: np.zeros(v.shape, np.float32)
            for k, v in Network().net.state_dict().items()
        }
        version = deployment.update(zero)
        print(f"version {version}: {deployment.evaluate(np.ones((1, 8), np.float32))}")


if __name__ == "__main__":
    main()
