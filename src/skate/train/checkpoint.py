"""Checkpoints on disk: whole or absent, never half written."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

NAME = "checkpoint.pkl"


def save(directory: Path, checkpoint: Any) -> Path:
    """Replace the checkpoint in ``directory``; a crash leaves the old one."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / NAME
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        pickle.dump(checkpoint, file, protocol=5)
        file.flush()
        os.fsync(file.fileno())  # else the rename may reach the disk first
    partial.replace(path)
    return path


def load(directory: Path) -> Any:
    """The checkpoint in ``directory``; None if there is none.

    It is a pickle: load only what you or your program wrote.
    """
    path = directory / NAME
    if not path.exists():
        return None
    with path.open("rb") as file:
        return pickle.load(file)
