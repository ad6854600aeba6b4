"""Simulations of seeded lengths, and the best that any schedule can make of them.

A function here takes one configuration and returns ``(steps, seconds of CPU)``.
"""

from __future__ import annotations

import functools
import heapq
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

WAIT_STEP_S = 0.02  # a robot or a game at 50 Hz
COARSE_STEPS, WAIT_STEPS, SIGMA = 3000, 50, 0.5
WEIGHTS_SHAPES = ((32, 3), (32,), (32, 32), (32,), (1, 32), (1,))

Done = tuple[int, float]


def lognormal_steps(seed: int, runs: int, mean: float) -> list[int]:
    """Lengths with this mean and sigma 0.5."""
    rng = np.random.default_rng(seed)
    drawn = rng.lognormal(np.log(mean) - SIGMA**2 / 2, SIGMA, runs)
    return [max(1, round(steps)) for steps in drawn]


def uniform_steps(seed: int, runs: int) -> list[int]:
    """Lengths from 20 to 200."""
    drawn = np.random.default_rng(seed).integers(20, 201, runs)
    return [int(steps) for steps in drawn]


@functools.cache
def pendulum() -> Any:
    """One real Pendulum-v1 for each process."""
    import gymnasium

    return gymnasium.make("Pendulum-v1", max_episode_steps=10**9)


def simulate_pendulum(steps: int) -> Done:
    """Random actions in the real Pendulum-v1."""
    began = time.thread_time()
    env = pendulum()
    env.reset(seed=steps)
    for _ in range(steps):
        env.step(env.action_space.sample())
    return steps, time.thread_time() - began


def simulate_waiting(steps: int) -> Done:
    """A simulator that is slow by itself: it keeps to absolute deadlines."""
    began, cpu = time.perf_counter(), time.thread_time()
    for step in range(1, steps + 1):
        time.sleep(max(0.0, began + step * WAIT_STEP_S - time.perf_counter()))
    return steps, time.thread_time() - cpu


def hold(seconds: float) -> Done:
    """Keeps its worker, so that the next one goes to another; makes it ready."""
    pendulum()
    time.sleep(seconds)
    return 0, 0.0


def hold_only(seconds: float) -> Done:
    """The same for workers that only wait."""
    time.sleep(seconds)
    return 0, 0.0


def draw_weights(seed: int) -> list[np.ndarray]:
    """Of a policy 3-32-32-1."""
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 0.3, shape) for shape in WEIGHTS_SHAPES]


class Evaluate:
    """A rollout of evolution strategies: perturbed weights in Pendulum-v1."""

    def __init__(self, weights: Sequence[np.ndarray]) -> None:
        self.weights = weights

    def __call__(self, config: tuple[int, int]) -> Done:
        return evaluate(self.weights, config)


def evaluate(weights: Sequence[np.ndarray], config: tuple[int, int]) -> Done:
    """``config``: the seed of the perturbation, and the steps."""
    seed, steps = config
    began = time.thread_time()
    rng = np.random.default_rng(seed)
    w1, b1, w2, b2, w3, b3 = (w + 0.05 * rng.standard_normal(w.shape) for w in weights)
    env = pendulum()
    observation, _ = env.reset(seed=seed)
    for _ in range(steps):
        hidden = np.tanh(w2 @ np.tanh(w1 @ observation + b1) + b2)
        observation, *_ = env.step(2.0 * np.tanh(w3 @ hidden + b3))
    return steps, time.thread_time() - began


# Exact schedules: seconds or steps, whatever the lengths are in ----------------------


def greedy(lengths: Sequence[float], n: int) -> float:
    """Each run goes to the worker that is free first, in the given order."""
    return max(end for _, _, end in greedy_spans(lengths, n))


def greedy_spans(lengths: Sequence[float], n: int) -> list[tuple[int, float, float]]:
    """Worker, start and end of each run."""
    free = [(0.0, worker) for worker in range(n)]
    spans = []
    for length in lengths:
        start, worker = heapq.heappop(free)
        spans.append((worker, start, start + length))
        heapq.heappush(free, (start + length, worker))
    return spans


def longest_first(lengths: Sequence[float], n: int) -> float:
    """Greedy, in order of length."""
    return greedy(sorted(lengths, reverse=True), n)


def barriers(lengths: Sequence[float], n: int) -> float:
    """Rounds of n runs; each waits for its longest."""
    return max(end for _, _, end in barrier_spans(lengths, n))


def barrier_spans(lengths: Sequence[float], n: int) -> list[tuple[int, float, float]]:
    """Worker, start and end of each run."""
    spans, start = [], 0.0
    for first in range(0, len(lengths), n):
        part = lengths[first : first + n]
        spans += [(worker, start, start + x) for worker, x in enumerate(part)]
        start += max(part)
    return spans


def lower_bound(lengths: Sequence[float], n: int) -> float:
    """No schedule is shorter."""
    return max(sum(lengths) / n, max(lengths))


SCHEDULES = {
    "greedy": greedy,
    "longest_first": longest_first,
    "barriers": barriers,
    "lower_bound": lower_bound,
}
