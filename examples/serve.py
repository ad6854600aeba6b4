"""Serve a model to tasks, and replace its weights while they use it."""

import numpy as np

import skate
from skate import serve


class Linear:
    """The smallest model that can be served and updated."""

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights

    def evaluate(self, states: np.ndarray) -> np.ndarray:
        return states @ self.weights  # (n, 3) to (n,)

    def set_weights(self, weights: np.ndarray) -> None:
        self.weights = weights


@skate.remote
def ask(deployment: serve.Deployment) -> tuple[float, int]:
    outputs, version = deployment.evaluate(np.ones((4, 3)), return_version=True)
    return float(outputs.mean()), version


def main() -> None:
    with serve.deploy(Linear, np.zeros(3)) as deployment:
        for scale in range(3):
            answers = skate.get([ask.remote(deployment) for _ in range(8)])
            print(f"answers {sorted(set(answers))}")
            deployment.update(np.full(3, float(scale + 1)))
        stats = deployment.stats()
        print(f"{stats['states']} states in {stats['batches']} batches")


if __name__ == "__main__":
    main()
