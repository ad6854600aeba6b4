"""The loop that every learner runs: collect, update, publish, report."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from skate import sim, train
from skate.serve import Deployment

from .policy import Weights
from .settings import Settings

if TYPE_CHECKING:
    from .ppo import PPO

RECENT_EPISODES = 100


@dataclass(frozen=True)
class Job:
    """What a learner is given."""

    settings: Settings
    initial: Weights
    deployment: Deployment  # of a ``GaussianPolicy``, at version 0


@dataclass
class Totals:
    """What has been done since the run began, over resumptions."""

    updates: int = 0
    env_steps: int = 0
    served_states: int = 0
    policy_lag_max: int = 0
    wall_s: float = 0.0
    # Busy seconds of the three parts, summed over their processes.
    simulation_busy_s: float = 0.0
    serving_busy_s: float = 0.0
    training_busy_s: float = 0.0


def learn(job: Job) -> None:
    """Train until ``total_steps``, simulating the next batch during each update.

    The rollout workers begin another rollout when this takes their last, so they act
    on weights that are at most a few updates old. PPO allows for that: its ratio is
    to the probabilities that the acting policy recorded.
    """
    context = train.context()
    settings = job.settings
    checkpoint = context.checkpoint
    totals = Totals(**checkpoint["totals"]) if checkpoint else Totals()
    served_before = totals.served_states, totals.serving_busy_s
    workers = settings.num_workers // settings.num_learners
    recent: deque[float] = deque(maxlen=RECENT_EPISODES)
    version = 0
    began = time.perf_counter() - totals.wall_s
    with sim.rollouts(
        settings.env,
        job.deployment,
        num_workers=workers,
        num_envs_per_worker=settings.num_envs_per_worker,
        rollout_length=settings.rollout_length,
        # A resumed run goes on with new episodes, not with those it began with.
        seed=(settings.seed, totals.updates),
        first_worker=context.rank * workers,
    ) as rollouts:
        learner = _make_learner(job, context)  # while the first rollouts are made
        while totals.updates < settings.updates:
            batch = [next(rollouts) for _ in range(workers)]
            lag = version - np.concatenate([t.policy_versions for t in batch])
            recent.extend(r for t in batch for r in t.episode_returns.tolist())

            started = time.perf_counter()
            left = 1 - totals.updates / settings.updates
            metrics = learner.update(batch, settings.ppo.learning_rate * left)
            busy = [time.perf_counter() - started, sum(t.simulate_s for t in batch)]
            training_s, simulation_s = context.allreduce(np.array(busy))
            lag_max = context.allreduce(np.array([lag.max()]), op="max")[0]

            version += 1
            totals.updates += 1
            totals.env_steps += settings.steps_per_update
            totals.policy_lag_max = max(totals.policy_lag_max, int(lag_max))
            totals.simulation_busy_s += float(simulation_s)
            totals.training_busy_s += float(training_s)
            if context.rank > 0:
                continue  # one rank publishes and reports for all
            job.deployment.update(learner.weights())
            served = job.deployment.stats()
            totals.served_states = served_before[0] + served["states"]
            totals.serving_busy_s = served_before[1] + served["busy_s"]
            totals.wall_s = time.perf_counter() - began
            metrics["mean_return"] = float(np.mean(recent)) if recent else np.nan
            metrics["policy_lag"] = float(lag.mean())
            checkpoint = {
                "policy": learner.weights(),
                "learner": learner.state(),
                "totals": asdict(totals),
            }
            context.report(asdict(totals) | metrics, checkpoint)


def _make_learner(job: Job, context: train.Context) -> PPO:
    # Not at the top: only learners need torch, whose import takes seconds.
    import torch

    from .ppo import PPO

    torch.set_num_threads(1)  # the other cores simulate
    learner = PPO(job.initial, job.settings.ppo, context, job.settings.seed)
    if context.checkpoint is not None:
        learner.restore(context.checkpoint["learner"])
    return learner
