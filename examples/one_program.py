"""Tasks, actors, streams, errors, simulation, serving, training in one program.

It prints the same on every engine: SKATE_ENGINE=inline, embedded or ray.
"""

from collections.abc import Iterator

import numpy as np

import skate
from skate import serve, sim, train


@skate.remote
def norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x))


@skate.remote
def divide(a: float, b: float) -> float:
    return a / b


@skate.remote
def halves(x: float) -> Iterator[float]:
    while x > 1:
        x /= 2
        yield x


@skate.remote
class Account:
    def __init__(self, balance: float) -> None:
        self.balance = balance

    def deposit(self, amount: float) -> float:
        self.balance += amount
        return self.balance


class Linear:
    """A model to serve: its weights can be replaced while it is asked."""

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights

    def evaluate(self, states: np.ndarray) -> np.ndarray:
        return states @ self.weights

    def set_weights(self, weights: np.ndarray) -> None:
        self.weights = weights


def random_walk(steps: int, seed: np.random.SeedSequence) -> float:
    return float(np.random.default_rng(seed).normal(size=steps).sum())


def fit_line(epochs: int) -> None:
    """Each rank has half of the points; all have the mean gradient."""
    context = train.context()
    x = np.linspace(-1, 1, 64)[context.rank :: context.world_size]
    weights = np.zeros(2)
    for _ in range(epochs):
        error = weights[0] * x + weights[1] - (3 * x - 1)
        gradient = np.array([(error * x).mean(), error.mean()])
        weights -= 0.5 * context.allreduce(gradient, op="mean")
    context.report({"slope": weights[0], "offset": weights[1]})


def tasks_and_actors() -> None:
    vector = skate.put(np.arange(1000.0))
    norms = skate.get([norm.remote(vector), norm.remote(np.ones(16))])
    print("tasks    ", *(f"{value:.4g}" for value in norms))
    account = Account.remote(100.0)
    print("actor    ", *skate.get([account.deposit.remote(n) for n in range(1, 5)]))
    quotients = (divide.remote(12, n) for n in (1, 2, 3, 4))
    found = sorted(skate.get(ref) for ref in skate.as_completed(quotients))
    print("completed", *found)
    print("mapped   ", *sorted(skate.map_unordered(account.deposit, [0, 0])))
    print("streamed ", *(skate.get(ref) for ref in halves.remote(20.0)))
    try:
        skate.get(divide.remote(1, 0))
    except ZeroDivisionError as error:
        print("error    ", error, isinstance(error, skate.exceptions.TaskError))


def simulate() -> None:
    ends = list(sim.run(random_walk, [100, 200, 300], ordered=True, run_seed=7))
    print("simulated", *(f"{end:.4g}" for end in ends))


def ask() -> None:
    with serve.deploy(Linear, np.zeros(3)) as model:
        before = model.evaluate(np.eye(3))
        version = model.update(np.array([1.0, 2.0, 3.0]))
        after = model.evaluate(np.eye(3))
        print("served   ", before.tolist(), version, after.tolist())


def learn() -> None:
    line = train.run(fit_line, num_workers=2, config=40).metrics
    print(f"trained   y = {line['slope']:.4g} x {line['offset']:+.4g}")


def main() -> None:
    tasks_and_actors()
    simulate()
    ask()
    learn()


if __name__ == "__main__":
    main()
