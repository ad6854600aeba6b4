"""Checkpoints on disk: whole or absent, never half written."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

NAME = "checkpoint.pkl"
PERIOD_S = 1.0


class Saver:
    """Writes the newest checkpoint, at most once in ``PERIOD_S`` and at the end.

    Args:
        directory: None writes nothing.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._unsaved: Any = None
        self._saved_at = -PERIOD_S
        self.path: Path | None = None

    def offer(self, checkpoint: Any, now: float) -> None:
        """Save now or later; ``now`` is in seconds."""
        self._unsaved = checkpoint
        if now - self._saved_at >= PERIOD_S:
            self._saved_at = now
            self.flush()

    def flush(self) -> None:
        """Save what was offered last, unless that is done already."""
        if self._directory is not None and self._unsaved is not None:
            self.path = save(self._directory, self._unsaved)
            self._unsaved = None


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
