"""PPO as a graph: rollout workers, a served policy, and learners.

Every learner runs :func:`learn`: collect, update, publish, report.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skate import sim, train
from skate.serve import Deployment, deploy

from .policy import Weights, policy_class
from .settings import Settings

if TYPE_CHECKING:
    from .ppo import PPO

RECENT_EPISODES = 100  # of all learners together

# Called with the metrics of an update, and the checkpoint after it.
OnReport = Callable[[Mapping[str, Any], Any], None]


@dataclass(frozen=True)
class Job:
    """What a learner is given."""

    settings: Settings
    initial: Weights
    deployment: Deployment  # of the policy, at version 0
    server: train.ParameterServer | None  # of gradients; None: allreduce


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


def train_ppo(
    path: Path, run: Settings, initial: Weights, checkpoint: Any, on_report: OnReport
) -> None:
    """Train with ``run.layout.num_learners`` learners, from ``checkpoint`` if any."""
    layout = run.layout
    weights = checkpoint["policy"] if checkpoint else initial
    updates = checkpoint["totals"]["updates"] if checkpoint else 0
    with deploy(
        policy_class(weights),
        weights,
        (run.seed, updates),  # seeds the draws
        max_batch_size=layout.num_workers * layout.num_envs_per_worker,
    ) as deployment:
        server = None
        if layout.sync == "parameter_server":
            # Not at the top: with allreduce the driver needs no torch.
            from .exchange import gradient_server

            server = gradient_server(initial, layout.num_learners)
        train.run(
            learn,
            layout.num_learners,
            config=Job(run, initial, deployment, server),
            checkpoint_dir=path,
            resume=checkpoint is not None,
            on_report=on_report,
        )


def learn(job: Job) -> None:
    """Train until the run's end, simulating the next batch during each update.

    The rollout workers begin another rollout when this takes their last, so they act
    on weights that are at most a few updates old. PPO allows for that: its ratio is
    to the probabilities that the acting policy recorded.
    """
    context = train.context()
    settings, layout = job.settings, job.settings.layout
    checkpoint = context.checkpoint
    totals = Totals(**checkpoint["totals"]) if checkpoint else Totals()
    served_before = totals.served_states, totals.serving_busy_s
    workers = layout.num_workers // layout.num_learners
    recent: deque[float] = deque(maxlen=-(-RECENT_EPISODES // layout.num_learners))
    version = 0
    solved = False
    began = time.perf_counter() - totals.wall_s
    with sim.rollouts(
        settings.env,
        job.deployment,
        num_workers=workers,
        num_envs_per_worker=layout.num_envs_per_worker,
        rollout_length=layout.rollout_length,
        # A resumed run goes on with new episodes, not with those it began with.
        seed=(settings.seed, totals.updates),
        first_worker=context.rank * workers,
    ) as rollouts:
        learner = _make_learner(job, context)  # while the first rollouts are made
        while totals.updates < settings.updates and not solved:
            batch = [next(rollouts) for _ in range(workers)]
            lag = version - np.concatenate([t.policy_versions for t in batch])
            recent.extend(r for t in batch for r in t.episode_returns.tolist())

            started = time.perf_counter()
            left = 1 - totals.updates / settings.updates
            metrics = learner.update(batch, settings.ppo.learning_rate * left)
            mine = [
                time.perf_counter() - started,
                sum(t.simulate_s for t in batch),
                sum(recent),
                len(recent),
            ]
            training_s, simulation_s, total, episodes = context.allreduce(
                np.array(mine, np.float64)
            ).tolist()
            lag_max = context.allreduce(np.array([lag.max()]), op="max")[0]
            mean_return = total / episodes if episodes else np.nan
            solved = (
                settings.target_return is not None
                and episodes >= RECENT_EPISODES
                and mean_return >= settings.target_return
            )

            version += 1
            totals.updates += 1
            totals.env_steps += settings.steps_per_update
            totals.policy_lag_max = max(totals.policy_lag_max, int(lag_max))
            totals.simulation_busy_s += simulation_s
            totals.training_busy_s += training_s
            if context.rank > 0:
                continue  # one rank publishes and reports for all
            job.deployment.update(learner.weights())
            served = job.deployment.stats()
            totals.served_states = served_before[0] + served["states"]
            totals.serving_busy_s = served_before[1] + served["busy_s"]
            totals.wall_s = time.perf_counter() - began
            metrics["mean_return"] = mean_return
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
    learner = PPO(job.initial, job.settings.ppo, context, job.settings.seed, job.server)
    if context.checkpoint is not None:
        learner.restore(context.checkpoint["learner"])
    return learner
