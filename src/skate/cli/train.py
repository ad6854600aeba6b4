"""``skate train``: train a policy, and evaluate it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import skate


def train(
    algo: Annotated[str, typer.Argument(help="The algorithm: ppo or es.")],
    env: Annotated[str, typer.Argument(help="A gymnasium id, such as Pendulum-v1.")],
    out: Annotated[
        Path | None, typer.Option(help="Directory of the run [default: runs/ALGO-ENV].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    total_steps: Annotated[
        int | None, typer.Option(help="Environment steps, over all environments.")
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option(help="Rollout workers [default: 2].")
    ] = None,
    num_envs_per_worker: Annotated[int | None, typer.Option()] = None,
    rollout_length: Annotated[
        int | None,
        typer.Option(help="Steps of each environment between two updates."),
    ] = None,
    num_learners: Annotated[
        int | None, typer.Option(help="Ranks that train [default: 1].")
    ] = None,
    sync: Annotated[
        str | None,
        typer.Option(
            help="How they average gradients: allreduce or parameter_server "
            "[default: allreduce]."
        ),
    ] = None,
    target_return: Annotated[
        float | None,
        typer.Option(help="Stop when the last 100 episodes have this mean return."),
    ] = None,
    episodes: Annotated[int, typer.Option(help="Of the evaluation at the end.")] = 20,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's checkpoint.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that is there.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    engine: Annotated[
        str | None, typer.Option(help="embedded, inline or ray [default: embedded].")
    ] = None,
) -> None:
    """Train ALGO on ENV: PPO, or evolution strategies.

    Numbers that are not given are those found for ENV, else defaults.
    """
    from skate import rl

    path = out or Path("runs") / f"{algo}-{env}"
    with skate.init(engine):
        try:
            result = rl.train(
                algo,
                env,
                out=path,
                seed=seed,
                total_steps=total_steps,
                num_workers=num_workers,
                num_envs_per_worker=num_envs_per_worker,
                rollout_length=rollout_length,
                num_learners=num_learners,
                sync=sync,
                target_return=target_return,
                eval_episodes=episodes,
                resume=resume,
                overwrite=overwrite,
                progress=not quiet,
            )
        except KeyboardInterrupt:
            typer.echo(
                f"\nstopped; to go on: skate train {algo} {env} --out {path} "
                "--resume (and the other options as before)"
            )
            raise
        typer.echo(result)
