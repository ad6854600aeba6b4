"""The directory of a run: what is in it, and how it is read and written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from skate.train import CHECKPOINT, load_checkpoint

from .policy import DeterministicPolicy, Weights
from .settings import ESRun, Settings

CONFIG = "config.json"
METRICS = "metrics.jsonl"
POLICY = "policy.npz"
RESULT = "result.json"
CURVE = "learning_curve.png"
GIF = "policy.gif"
TENSORBOARD = "tensorboard"

# A resumed run may end elsewhere; all else must be as it was.
_MAY_CHANGE = {"total_steps", "target_return"}


def prepare(
    path: Path, settings: Settings | ESRun, *, resume: bool, overwrite: bool
) -> Any:
    """Make the directory ready for a run; the checkpoint to go on from, if any.

    Raises:
        FileExistsError: there is a run, to be neither resumed nor overwritten.
        ValueError: the run to resume was set up otherwise.
    """
    described = json.loads(json.dumps(asdict(settings)))
    checkpoint = None
    if (path / CONFIG).exists():
        if resume:
            _check_same(path, load_config(path), described)
            checkpoint = load_checkpoint(path)
        elif not overwrite:
            raise FileExistsError(
                f"{str(path)!r} holds a run already: pass resume=True (--resume) to go "
                "on with it, or overwrite=True (--overwrite) to replace it."
            )
    if checkpoint is None:
        _remove_run(path)
    path.mkdir(parents=True, exist_ok=True)
    _write_json(path / CONFIG, described)
    return checkpoint


def load_config(path: str | Path) -> dict[str, Any]:
    """How the run in ``path`` was set up.

    Raises:
        FileNotFoundError: ``path`` is not the directory of a training run.
    """
    file = Path(path) / CONFIG
    if not file.exists():
        raise FileNotFoundError(
            f"{str(path)!r} is not the directory of a training run: it has no {CONFIG}."
        )
    config: dict[str, Any] = json.loads(file.read_text())
    return config


def save_policy(path: Path, weights: Weights) -> None:
    """Write the policy of a run directory; a crash leaves the old one."""
    partial = path / f"{POLICY}.partial"
    arrays: dict[str, Any] = dict(weights)  # Any: savez has a keyword of another type
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(path / POLICY)


def load_policy(path: str | Path) -> DeterministicPolicy:
    """The deterministic policy of a run: one observation, ``(D,)``, to an action.

    That is an array ``(A,)`` within its bounds, or the number of a discrete action.
    The observation is scaled as training did.

    Raises:
        FileNotFoundError: no policy was saved there.
    """
    file = Path(path) / POLICY
    if not file.exists():
        raise FileNotFoundError(
            f"{str(path)!r} is not the directory of a training run, or the run has "
            f"not saved a policy yet: it has no {POLICY}."
        )
    with np.load(file, allow_pickle=False) as arrays:
        return DeterministicPolicy(dict(arrays))


def read_metrics(path: Path, up_to: int | None = None) -> list[dict[str, Any]]:
    """The reports of a run, oldest first; those of at most ``up_to`` steps."""
    file = path / METRICS
    lines = file.read_text().splitlines() if file.exists() else []
    reports = [json.loads(line) for line in lines]
    return [r for r in reports if up_to is None or r["env_steps"] <= up_to]


def save_result(path: Path, summary: Mapping[str, Any]) -> None:
    _write_json(path / RESULT, summary)


def _check_same(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    was, wanted = _flat(old), _flat(new)
    changed = [n for n in wanted if wanted[n] != was.get(n) and n not in _MAY_CHANGE]
    if changed:
        settings = ", ".join(f"{name}={was.get(name)!r}" for name in changed)
        raise ValueError(
            f"the run in {str(path)!r} was set up with {settings}. Resume it with the "
            "same settings, or choose another directory."
        )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a run by their own names: those of its parts, too."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat


def _remove_run(path: Path) -> None:
    """Remove what a run wrote, and nothing else that may be there."""
    for name in (CONFIG, METRICS, POLICY, RESULT, CURVE, GIF, CHECKPOINT):
        (path / name).unlink(missing_ok=True)
    shutil.rmtree(path / TENSORBOARD, ignore_errors=True)


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")
