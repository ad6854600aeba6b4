"""A finished run to look at: its learning curve, and the policy at work."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .policy import Array
from .run_files import CURVE, GIF

GIF_WIDTH = 240  # pixels
GIF_FRAMES_PER_S = 15


def draw_learning_curve(
    history: Sequence[Mapping[str, Any]], env: str, path: Path
) -> None:
    """Draw the mean return over environment steps, into directory ``path``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([m["env_steps"] for m in history], [m["mean_return"] for m in history])
    axes.set_xlabel("environment steps")
    axes.set_ylabel("mean return of recent episodes")
    axes.set_title(env)
    axes.grid(alpha=0.3)
    figure.savefig(path / CURVE, dpi=120)


def draw_gif(
    policy: Callable[[Array], Array], env: str, path: Path, *, seed: int = 0
) -> None:
    """Draw one episode into directory ``path``; warns if ``env`` cannot render."""
    # Before gymnasium imports pygame: it would greet, and look for a screen.
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    import gymnasium
    from PIL import Image

    try:
        game = gymnasium.make(env, render_mode="rgb_array")
        game.reset()
        game.render()
    except gymnasium.error.DependencyNotInstalled as error:
        warnings.warn(f"no {GIF} of the policy: {error}", stacklevel=2)
        return
    shown_every = max(1, round(game.metadata.get("render_fps", 30) / GIF_FRAMES_PER_S))
    frames = []
    observation, _ = game.reset(seed=seed)
    step, ended = 0, False
    while not ended:
        if step % shown_every == 0:
            image = Image.fromarray(np.asarray(game.render()))
            height = image.height * GIF_WIDTH // image.width
            frames.append(image.resize((GIF_WIDTH, height)).quantize(64))
        observation, _, terminated, truncated, _ = game.step(policy(observation))
        step, ended = step + 1, terminated or truncated
    game.close()
    first, *others = frames
    first.save(
        path / GIF,
        save_all=True,
        append_images=others,
        duration=1000 // GIF_FRAMES_PER_S,
        loop=0,
    )
