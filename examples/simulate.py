"""Estimate pi with simulations of very different lengths, used as they finish.

The longest start first (``cost``), and each has a seed of its own that depends on its
index alone: the estimate is the same on any number of workers and on any engine.
"""

import numpy as np

from skate import sim


def darts(count: int, seed: np.random.SeedSequence) -> tuple[int, int]:
    """How many of ``count`` random points of a square lie in its circle."""
    points = np.random.default_rng(seed).random((count, 2))
    return count, int((np.square(points).sum(axis=1) < 1).sum())


def main() -> None:
    counts = [int(1000 * 1.5**i) for i in range(16)]
    run = sim.run(darts, counts, cost=counts)
    thrown = inside = 0
    for count, hits in run:
        thrown, inside = thrown + count, inside + hits
    print(f"pi is about {4 * inside / thrown:.4f}, from {thrown:,} points")
    print(f"{run.stats()['workers']} workers took part")


if __name__ == "__main__":
    main()
