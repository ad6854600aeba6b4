"""A population of policies in one deployment: the better half teaches the other."""

import numpy as np

import skate
from skate import serve


class Policy:
    """A linear policy; one instance for each member of the population."""

    def __init__(self, size: int) -> None:
        self.weights = np.zeros(size)

    def evaluate(self, states: np.ndarray) -> np.ndarray:
        return states @ self.weights  # (n, size) to (n,)

    def set_weights(self, weights: np.ndarray) -> None:
        self.weights = weights


TARGET = np.array([1.0, -2.0, 0.5])


@skate.remote
def loss(population: serve.Deployment, name: str, seed: int) -> float:
    """How far the policy's actions are from the target's."""
    states = np.random.default_rng(seed).normal(size=(64, len(TARGET)))
    actions = population.evaluate(states, model_id=name)
    return float(((actions - states @ TARGET) ** 2).mean())


def main() -> None:
    rng = np.random.default_rng(0)
    names = [f"policy-{i}" for i in range(8)]
    weights = {name: rng.normal(size=len(TARGET)) for name in names}
    with serve.deploy(Policy, len(TARGET), model_ids=names) as population:
        for name in names:
            population.update(weights[name], model_id=name)
        for generation in range(40):
            losses = skate.get([loss.remote(population, n, generation) for n in names])
            ranked = [name for _, name in sorted(zip(losses, names, strict=True))]
            best, worst = ranked[: len(names) // 2], ranked[len(names) // 2 :]
            for winner, loser in zip(best, worst, strict=True):
                step = rng.normal(scale=0.9**generation, size=len(TARGET))
                weights[loser] = weights[winner] + step
                population.update(weights[loser], model_id=loser)
        print(f"the best policy's loss is {min(losses):.2f}")
        print(f"{sum(population.versions().values())} updates")


if __name__ == "__main__":
    main()
