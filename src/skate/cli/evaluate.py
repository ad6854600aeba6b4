"""``skate evaluate``: how good the policy of a run is, from its files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    path: Annotated[Path, typer.Argument(help="Directory of a training run.")],
    episodes: Annotated[int, typer.Option(help="How many to play.")] = 20,
    seed: Annotated[int, typer.Option(help="Episode i gets seed + i.")] = 0,
) -> None:
    """Play whole episodes with the trained policy; the same seeds, the same numbers."""
    from skate import rl

    config = rl.load_config(path)
    found = rl.evaluate(
        rl.load_policy(path), config["env"], episodes=episodes, seed=seed
    )
    typer.echo(
        f"{config['env']}: mean return {found.mean:.3f} over {episodes} episodes "
        f"(standard deviation {found.std:.3f}, "
        f"worst {found.returns.min():.3f}, best {found.returns.max():.3f})"
    )
