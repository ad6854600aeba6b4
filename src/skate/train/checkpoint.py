"""Checkpoints on disk: whole or absent, checked when they are read.

A file is a pickle and a trailer: a line of JSON with the format's version, the length
and the SHA-256 of the pickle, then the length of the line, then ``MAGIC``. The trailer
comes last, so a file that was cut has none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import struct
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from skate.exceptions import CheckpointError

from .tree import Tree, differences

NAME = "checkpoint.pkl"
BEST = "best.pkl"
FORMAT = 1
MAGIC = b"skateCKP"
PERIOD_S = 1.0
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Offer:
    """A checkpoint to be saved.

    Attributes:
        step: of the run: how many reports came before, over resumptions.
        best: it is the best so far, and kept as such.
    """

    checkpoint: Any
    step: int
    metrics: Mapping[str, Any]
    best: bool = False


class Saver:
    """Writes checkpoints on a thread of its own: the newest, and the best.

    While one is written, or within ``PERIOD_S`` of the last, a newer one takes the
    place of one that waits. A failure is raised by the next call.

    Args:
        directory: None writes nothing.
        keep: how many of the newest to keep, as ``checkpoint-<step>.pkl`` if not 1.
        anew: with the first one, remove those of an earlier run.
    """

    def __init__(
        self, directory: Path | None, keep: int = 1, *, anew: bool = False
    ) -> None:
        self._directory = directory
        self._keep = keep
        self._anew = anew
        self._writer = ThreadPoolExecutor(1, "skate-checkpoint")
        self._writing: Future[None] | None = None
        self._waiting: list[Offer] = []
        self._saved_at = -PERIOD_S
        self.path: Path | None = None
        self.best_path: Path | None = None

    def offer(self, offer: Offer, now: float) -> None:
        """Save now or later; ``now`` is in seconds."""
        if self._directory is None:
            return
        self._waiting = [kept for kept in self._waiting if kept.best and not offer.best]
        self._waiting.append(offer)
        idle = self._writing is None or self._writing.done()
        if idle and now - self._saved_at >= PERIOD_S:
            self._saved_at = now
            self._start()

    def flush(self) -> None:
        """Return when what was offered last is on the disk."""
        self._start()
        self._settle()

    def close(self) -> None:
        """End the thread. What waits is not written: ``flush`` first."""
        self._writer.shutdown()

    def _start(self) -> None:
        self._settle()
        if self._waiting:
            offers, self._waiting = self._waiting, []
            self._writing = self._writer.submit(self._write, offers)

    def _settle(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, offers: list[Offer]) -> None:
        assert self._directory is not None
        if self._anew:  # not sooner: the run may fail before it has any of its own
            self._anew = False
            for old in (self._directory / BEST, *numbered(self._directory)):
                old.unlink(missing_ok=True)
        for offer in offers:
            self.path = save(
                self._directory, offer.checkpoint, offer.step, offer.metrics, self._keep
            )
            if offer.best:
                self.best_path = _also_as(self.path, BEST)


def save(
    directory: Path,
    checkpoint: Any,
    step: int = 0,
    metrics: Mapping[str, Any] | None = None,
    keep: int = 1,
) -> Path:
    """Replace the checkpoint in ``directory``; a crash leaves the old one."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / NAME
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        hashed = _Hashed(file)
        pickle.dump(checkpoint, hashed, protocol=5)
        trailer = {
            "format": FORMAT,
            "step": step,
            "bytes": hashed.bytes,
            "sha256": hashed.sha256.hexdigest(),
            "metrics": _plain(metrics or {}),
        }
        line = json.dumps(trailer).encode()
        file.write(line + _LENGTH.pack(len(line)) + MAGIC)
        file.flush()
        os.fsync(file.fileno())  # else the rename may reach the disk first
    partial.replace(path)
    if keep > 1:
        _also_as(path, f"checkpoint-{step:08d}.pkl")
        for old in numbered(directory)[:-keep]:
            old.unlink()
    return path


def numbered(directory: Path) -> list[Path]:
    """The checkpoints that were kept, oldest first."""
    return sorted(directory.glob("checkpoint-*.pkl"))


def load(path: str | Path, like: Tree = None) -> Any:
    """The newest checkpoint in a directory, or the one in a file; None without.

    It is a pickle: load only what you or your program wrote.

    Args:
        like: what the checkpoint must be like: the same names, shapes and dtypes.

    Raises:
        CheckpointError: the file is cut, damaged, of another version, or unlike
            ``like``; the message says how, and which others are there.
    """
    path = Path(path)
    file = path / NAME if path.is_dir() else path
    if not file.exists():
        return None
    data = memoryview(file.read_bytes())
    trailer = _trailer(file, data)
    checkpoint = pickle.loads(data[: trailer["bytes"]])
    if like is not None:
        check_like(checkpoint, like, f"the checkpoint in {str(file)!r}")
    return checkpoint


def describe(path: str | Path) -> dict[str, Any]:
    """What the trailer says: step, metrics, bytes, sha256, format."""
    file = Path(path) / NAME if Path(path).is_dir() else Path(path)
    return _trailer(file, memoryview(file.read_bytes()))


def check_like(checkpoint: Any, like: Tree, what: str = "the checkpoint") -> None:
    """Raise CheckpointError if the two differ in names, shapes or dtypes.

    What a checkpoint has beside the names at the top of ``like`` does not matter.
    """
    if isinstance(checkpoint, dict) and isinstance(like, dict):
        checkpoint = {k: checkpoint[k] for k in like if k in checkpoint}
    lines = differences(checkpoint, like, "checkpoint")
    if lines:
        more = f" and {len(lines) - 8} more" if len(lines) > 8 else ""
        raise CheckpointError(
            f"{what} is of another model: " + "; ".join(lines[:8]) + more + "."
        )


def _trailer(file: Path, data: memoryview) -> dict[str, Any]:
    end = len(MAGIC) + _LENGTH.size
    if len(data) < end or bytes(data[-len(MAGIC) :]) != MAGIC:
        raise CheckpointError(
            f"{str(file)!r} is truncated, or no checkpoint of this version of skate: "
            f"it has {len(data)} bytes and no trailer.{_others(file)}"
        )
    (length,) = _LENGTH.unpack(data[-end : -len(MAGIC)])
    trailer: dict[str, Any] = json.loads(bytes(data[-end - length : -end]))
    if trailer["format"] != FORMAT:
        raise CheckpointError(
            f"{str(file)!r} has format {trailer['format']}; this version of skate "
            f"reads format {FORMAT}. Load it with the one that wrote it.{_others(file)}"
        )
    there = len(data) - end - length
    if there != trailer["bytes"]:
        raise CheckpointError(
            f"{str(file)!r} is damaged: {there} bytes of {trailer['bytes']} are there."
            f"{_others(file)}"
        )
    found = hashlib.sha256(data[:there]).hexdigest()
    if found != trailer["sha256"]:
        raise CheckpointError(
            f"{str(file)!r} is damaged: its SHA-256 is {found[:16]}..., and was "
            f"{trailer['sha256'][:16]}... when it was written.{_others(file)}"
        )
    return trailer


def _others(file: Path) -> str:
    others = [p.name for p in (*numbered(file.parent), file.parent / BEST)]
    there = [n for n in others if n != file.name and (file.parent / n).exists()]
    if not there:
        return ""
    return f" Beside it: {', '.join(there)}; copy one over it to go on from there."


def _also_as(path: Path, name: str) -> Path:
    """Another name for a file, put there at once; the old file of that name goes."""
    partial = path.with_name(f"{name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(path, partial)
    except OSError:  # a file system without links
        shutil.copyfile(path, partial)
    target = path.with_name(name)
    os.replace(partial, target)
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()  # a rename between two names of one file leaves both
    return target


def _plain(metrics: Mapping[str, Any]) -> dict[str, float]:
    plain = {}
    for name, value in metrics.items():
        try:
            plain[name] = float(value)
        except (TypeError, ValueError):
            continue  # not a number: it is not for the trailer
    return plain


class _Hashed:
    """A file that hashes and counts what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.sha256.update(view)
        self.bytes += view.nbytes
        return self._file.write(view)
