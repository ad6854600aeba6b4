"""``skate train``: train a policy, and evaluate it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import skate


def train(
    algo: Annotated[str, typer.Argument(help="The algorithm: ppo.")],
    env: Annotated[str, typer.Argument(help="A gymnasium id, such as Pendulum-v1.")],
    out: Annotated[
        Path | None, typer.Option(help="Directory of the run [default: runs/ALGO-ENV].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    total_steps: Annotated[
        int, typer.Option(help="Environment steps, over all environments.")
    ] = 550_000,
    num_workers: Annotated[int, typer.Option(help="Rollout workers.")] = 2,
    num_envs_per_worker: Annotated[int, typer.Option()] = 32,
    rollout_length: Annotated[
        int, typer.Option(help="Steps of each environment between two updates.")
    ] = 64,
    num_learners: Annotated[int, typer.Option(help="Ranks that train.")] = 1,
    episodes: Annotated[int, typer.Option(help="Of the evaluation at the end.")] = 20,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's checkpoint.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that is there.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    engine: Annotated[
        str | None, typer.Option(help="embedded or inline [default: embedded].")
    ] = None,
) -> None:
    """Train ALGO on ENV; rollouts, a served policy and learners run at once."""
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
