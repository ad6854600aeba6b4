"""``rl.train``: train an algorithm, evaluate what it learnt, write it all down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import skate

from . import run_files
from .envs import Spaces, check_algorithm, check_extras, spaces
from .es import train_es
from .evaluate import evaluate
from .learner import train_ppo
from .log import RunLog
from .pictures import draw_gif, draw_learning_curve
from .settings import (
    TUNED_ES_STEPS,
    TUNED_LAYOUT,
    TUNED_PPO,
    ESRun,
    ESSettings,
    Layout,
    PPOSettings,
    Settings,
)

PARTS = ("simulation", "serving", "training")


@dataclass(frozen=True)
class Result:
    """A finished run: its directory, and what its ``result.json`` says."""

    path: Path
    summary: dict[str, Any]

    def __str__(self) -> str:
        s = self.summary
        wall = s["wall_s"]
        busy = "\n".join(
            f"  {part:<10} busy {s[f'{part}_busy_s']:6.1f} s"
            f"  ({s[f'{part}_busy_s'] / wall:4.0%} of one core)"
            for part in PARTS
            if f"{part}_busy_s" in s
        )
        late = (
            f"; it acted at most {s['policy_lag_max']} updates late"
            if "policy_lag_max" in s
            else ""
        )
        return f"""\
{s["env"]}: mean return {s["mean_return"]:.1f} +- {s["std_return"]:.1f} in \
{s["episodes"]} episodes
{s["env_steps"]:,} steps in {wall:.1f} s of training on the {s["engine"]} engine
{s["policy_versions"]} versions of the policy{late}
{busy}
written to {self.path}"""


def train(
    algo: str,
    env: str,
    *,
    out: str | Path,
    total_steps: int | None = None,
    seed: int = 0,
    num_workers: int | None = None,
    num_envs_per_worker: int | None = None,
    rollout_length: int | None = None,
    num_learners: int | None = None,
    sync: str | None = None,
    settings: PPOSettings | ESSettings | None = None,
    target_return: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    eval_episodes: int = 20,
    progress: bool = True,
) -> Result:
    """Train ``algo`` on the gymnasium environment ``env``, and evaluate the result.

    PPO: rollout workers ask a served policy for every action, learners improve it, and
    its weights go back into the deployment with a version, while the next rollouts go
    on. ES: every rollout of a perturbed policy is a task. Numbers that are None are
    those found for ``env``, else the defaults.

    Into ``out`` go ``metrics.jsonl``, TensorBoard events where it is installed,
    ``checkpoint.pkl``, ``policy.npz``, ``learning_curve.png``, ``policy.gif`` and
    ``result.json``. Ctrl-C saves what was learnt and raises KeyboardInterrupt.

    Args:
        algo: ``"ppo"`` or ``"es"``.
        env: its observations must be vectors; its actions vectors of bounded numbers,
            or discrete.
        total_steps: of all environments together.
        num_workers: of PPO, as are the next three: rollout workers; a multiple of
            ``num_learners``.
        rollout_length: steps of each environment between two updates.
        sync: how the learners of PPO average their gradients: ``"allreduce"``, or
            through a ``"parameter_server"`` whose shards they host.
        settings: of the algorithm.
        target_return: stop when the last 100 training episodes have this mean return.
        resume: go on from the checkpoint in ``out``, if there is one.
        overwrite: replace the run in ``out``.
        eval_episodes: of the deterministic policy, with seeds ``seed + i``.
        progress: show it on the terminal.

    Raises:
        ValueError: an unknown name, a number out of range, or a resumed run that
            was set up otherwise.
        FileExistsError: a run is in ``out``; ``resume`` it or ``overwrite`` it.
        ImportError: an extra is missing.
    """
    check_algorithm(algo)
    check_extras()
    if eval_episodes < 1:
        raise ValueError(f"eval_episodes={eval_episodes!r}; expected at least 1.")
    found = spaces(env)
    given = {
        "num_workers": num_workers,
        "num_envs_per_worker": num_envs_per_worker,
        "rollout_length": rollout_length,
        "num_learners": num_learners,
        "sync": sync,
    }
    told = {name: value for name, value in given.items() if value is not None}
    run = _settings(algo, env, seed, total_steps, told, settings, target_return)
    path = Path(out)
    checkpoint = run_files.prepare(path, run, resume=resume, overwrite=overwrite)
    totals = _train(path, run, found, checkpoint, progress)

    policy = run_files.load_policy(path)
    evaluation = evaluate(policy, env, episodes=eval_episodes, seed=seed)
    summary = {
        "algo": algo,
        "env": env,
        "seed": seed,
        "engine": skate.init(ignore_reinit_error=True).engine,
        "mean_return": evaluation.mean,
        "std_return": evaluation.std,
        "episodes": eval_episodes,
        **totals,
        "policy_versions": totals["updates"] + 1,  # the untrained one is version 0
    }
    run_files.save_result(path, summary)
    draw_learning_curve(run_files.read_metrics(path), env, path)
    # The hardest episode of the evaluation shows most of what was learnt.
    draw_gif(policy, env, path, seed=seed + int(evaluation.returns.argmin()))
    return Result(path, summary)


def _settings(
    algo: str,
    env: str,
    seed: int,
    total_steps: int | None,
    told: dict[str, Any],
    settings: PPOSettings | ESSettings | None,
    target_return: float | None,
) -> Settings | ESRun:
    """The whole of a run's settings, checked."""
    expected = PPOSettings if algo == "ppo" else ESSettings
    if settings is not None and not isinstance(settings, expected):
        raise ValueError(f"settings={settings!r}; {algo} takes {expected.__name__}.")
    if algo == "es":
        if told:
            raise ValueError(
                f"{', '.join(told)}: of PPO alone. The rollouts of es are tasks; "
                "ESSettings has the number of them."
            )
        steps = (
            TUNED_ES_STEPS.get(env, 2_000_000) if total_steps is None else total_steps
        )
        es = settings if isinstance(settings, ESSettings) else ESSettings()
        return ESRun(algo, env, seed, steps, es, target_return).checked()
    if total_steps is not None:
        told = told | {"total_steps": total_steps}
    layout = replace(TUNED_LAYOUT.get(env, Layout()), **told)
    ppo = TUNED_PPO.get(env, PPOSettings())
    if isinstance(settings, PPOSettings):
        ppo = settings
    return Settings(algo, env, seed, layout, ppo, target_return).checked()


def _train(
    path: Path, run: Settings | ESRun, found: Spaces, checkpoint: Any, progress: bool
) -> Mapping[str, Any]:
    """Train, and save the policy however it ends; the totals of the run."""
    initial = found.initial_weights(run.hidden, run.seed)
    latest = checkpoint or {"policy": initial, "totals": {"updates": 0, "env_steps": 0}}
    log = RunLog(
        path,
        run.total_steps,
        resumed_at=latest["totals"]["env_steps"],
        progress=progress,
    )

    def on_report(metrics: Mapping[str, Any], reported: Any) -> None:
        nonlocal latest
        latest = reported
        log(metrics)

    try:
        with log:
            if isinstance(run, ESRun):
                train_es(path, run, initial, checkpoint, on_report)
            else:
                train_ppo(path, run, initial, checkpoint, on_report)
    finally:
        run_files.save_policy(path, latest["policy"])
    totals: Mapping[str, Any] = latest["totals"]
    return totals
