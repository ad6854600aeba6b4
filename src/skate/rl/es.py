"""Evolution strategies: perturb the policy, play, and follow what did better.

Every perturbation is a seed: workers and learner make the same noise from it, so that
only numbers travel. Each is tried in both directions, on the same episode.

Source: Salimans et al., "Evolution strategies as a scalable alternative to
reinforcement learning", 2017, https://arxiv.org/abs/1703.03864.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import skate
from skate import sim, train

from .learner import RECENT_EPISODES, OnReport
from .moments import RunningMoments
from .policy import Array, DeterministicPolicy, Weights
from .settings import ESRun

_envs: dict[
    str, sim.Env
] = {}  # one of each in a worker process, made when first needed


@dataclass(frozen=True)
class Candidate:
    """One rollout: a policy moved by ``step`` times the noise of its pair."""

    env: str
    policy: Any  # an ObjectRef of Weights; of the iteration, shared by all
    pair: tuple[int, int, int]  # seed of the run, iteration, number in it
    step: float


@dataclass(frozen=True)
class Played:
    """What a rollout gives back."""

    number: int  # of the pair
    step: float
    total: float  # return of the episode
    steps: int
    observations: npt.NDArray[np.float64]  # (3, D): see RunningMoments.sums
    seconds: float


@dataclass
class Totals:
    """What has been done since the run began, over resumptions."""

    updates: int = 0
    env_steps: int = 0
    wall_s: float = 0.0
    simulation_busy_s: float = 0.0
    training_busy_s: float = 0.0


def train_es(
    path: Path, run: ESRun, initial: Weights, checkpoint: Any, on_report: OnReport
) -> None:
    """Evolve the policy ``initial``, or that of ``checkpoint``."""
    train.run(
        evolve,
        1,
        config=(run, initial),
        checkpoint_dir=path,
        resume=checkpoint is not None,
        on_report=on_report,
    )


def evolve(job: tuple[ESRun, Weights]) -> None:
    """Until ``total_steps``: a generation of rollouts, each a task; then a step."""
    run, initial = job
    context = train.context()
    saved = context.checkpoint
    totals = Totals(**saved["totals"]) if saved else Totals()
    recent: deque[float] = deque(maxlen=RECENT_EPISODES)
    learner = Learner(run, dict(initial))
    if saved:
        learner.restore(saved)
    began = time.perf_counter() - totals.wall_s
    solved = False
    while totals.env_steps < run.total_steps and not solved:
        played = list(sim.run(rollout, learner.candidates(totals.updates)))
        started = time.perf_counter()
        learner.step(played, totals.updates)
        recent.extend(p.total for p in played)
        mean_return = float(np.mean(recent))
        solved = run.target_return is not None and mean_return >= run.target_return

        now = time.perf_counter()
        totals.updates += 1
        totals.env_steps += sum(p.steps for p in played)
        totals.simulation_busy_s += sum(p.seconds for p in played)
        totals.training_busy_s += now - started
        totals.wall_s = now - began
        metrics = {"mean_return": mean_return, "best_return": max(recent)}
        checkpoint = learner.state() | {"totals": asdict(totals)}
        context.report(asdict(totals) | metrics, checkpoint)


def rollout(candidate: Candidate) -> Played:
    """Play one episode with the policy that the candidate describes."""
    began = time.perf_counter()
    weights = dict(skate.get(candidate.policy))
    theta = flatten(weights) + candidate.step * noise(candidate.pair, weights)
    policy = DeterministicPolicy(unflatten(theta, weights))
    if candidate.env not in _envs:
        _envs[candidate.env] = sim.make_env(candidate.env)
    env = _envs[candidate.env]
    episode = np.random.SeedSequence(candidate.pair).generate_state(1)[0]
    observation, _ = env.reset(seed=int(episode))
    seen, total, ended = [], 0.0, False
    while not ended:
        seen.append(observation)
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        total += float(reward)
        ended = terminated or truncated
    x = np.array(seen, np.float64)  # (T, D)
    sums = np.stack([np.full(x.shape[1], len(x)), x.sum(0), np.square(x).sum(0)])
    seconds = time.perf_counter() - began
    return Played(candidate.pair[2], candidate.step, total, len(seen), sums, seconds)


@dataclass
class Learner:
    """The policy, and how it follows the rollouts: Adam on the estimated gradient."""

    run: ESRun
    weights: dict[str, Array]
    _moments: RunningMoments = field(init=False)

    def __post_init__(self) -> None:
        size = len(self.weights["observation_mean"])
        self._moments = RunningMoments(size, lambda sums: sums)
        self._first = np.zeros_like(flatten(self.weights))
        self._second = np.zeros_like(self._first)

    def candidates(self, iteration: int) -> Iterator[Candidate]:
        """Both directions of each pair."""
        shared = skate.put(self.weights)
        for number in range(self.run.es.pairs):
            pair = (self.run.seed, iteration, number)
            for sign in (1, -1):
                step = sign * self.run.es.sigma
                yield Candidate(self.run.env, shared, pair, step)

    def step(self, played: list[Played], iteration: int) -> None:
        """Move towards the candidates that did better."""
        es = self.run.es
        ranks = centered_ranks(np.array([p.total for p in played]))
        share = np.zeros(es.pairs)
        for p, rank in zip(played, ranks, strict=True):
            share[p.number] += rank * np.sign(p.step)
        gradient = np.zeros_like(self._first)
        for number in range(es.pairs):
            pair = (self.run.seed, iteration, number)
            gradient += np.float32(share[number]) * noise(pair, self.weights)
        gradient /= np.float32(es.pairs * es.sigma)

        theta = flatten(self.weights)
        gradient -= np.float32(es.weight_decay) * theta
        self._first = np.float32(0.9) * self._first + np.float32(0.1) * gradient
        self._second = (
            np.float32(0.999) * self._second + np.float32(0.001) * gradient**2
        )
        first = self._first / np.float32(1 - 0.9 ** (iteration + 1))
        second = self._second / np.float32(1 - 0.999 ** (iteration + 1))
        theta = theta + np.float32(es.learning_rate) * first / (np.sqrt(second) + 1e-8)
        self.weights |= unflatten(theta, self.weights)
        self._moments.sums += sum(p.observations for p in played)
        self.weights["observation_mean"] = self._moments.mean
        self.weights["observation_std"] = self._moments.std

    def state(self) -> dict[str, Any]:
        """All that :meth:`restore` needs; ``policy`` is what is served and saved."""
        return {
            "policy": dict(self.weights),
            "adam": (self._first, self._second),
            "observations": self._moments.sums.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.weights = dict(state["policy"])
        self._first, self._second = state["adam"]
        self._moments.sums = state["observations"].copy()


def layers(weights: Weights) -> list[str]:
    """The names of the arrays that evolve: the network's."""
    return sorted(name for name in weights if name[0] in "wb" and name[1:].isdigit())


def flatten(weights: Weights) -> Array:
    """The network's weights in one row."""
    return np.concatenate([weights[name].ravel() for name in layers(weights)])


def unflatten(theta: Array, weights: Weights) -> dict[str, Array]:
    """The inverse of :func:`flatten`; what is not the network's is ``weights``'."""
    found, start = dict(weights), 0
    for name in layers(weights):
        shape, size = weights[name].shape, weights[name].size
        found[name] = theta[start : start + size].reshape(shape)
        start += size
    return found


def noise(pair: tuple[int, int, int], weights: Weights) -> Array:
    """What ``pair`` adds to the network's weights, for a step of 1."""
    size = sum(weights[name].size for name in layers(weights))
    return np.random.default_rng(pair).standard_normal(size, dtype=np.float32)


def centered_ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From -0.5 for the smallest to 0.5 for the largest, equal ones alike."""
    _, where, count = np.unique(values, return_inverse=True, return_counts=True)
    if len(count) == 1:
        return np.zeros(len(values))
    before = np.cumsum(count) - count
    ranks: npt.NDArray[np.float64] = (before + (count - 1) / 2)[where]
    return ranks / (len(values) - 1) - 0.5
