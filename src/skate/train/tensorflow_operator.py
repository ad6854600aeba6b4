"""The compiled operator that stores gradients: made once, kept in a cache."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

SOURCE = Path(__file__).with_name("store_gradient.cc")
COMPILE_S = 300.0  # some five seconds, where nothing else runs


class NoOperatorError(Exception):
    """It cannot be had; says why."""


@functools.cache
def load() -> Callable[[Sequence[Any], Sequence[np.ndarray]], Any]:
    """A function of tensors and the arrays that they are copied into; gives a tensor.

    Compiles the operator if no process has done it for this TensorFlow.

    Raises:
        NoOperatorError: there is no compiler, or it failed.
    """
    library = _directory() / f"store_gradient-{_version()}.so"
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with library.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another rank may be at it
            if not library.exists():
                _compile(library)
        operator = tf.load_op_library(str(library)).skate_store
    except (OSError, tf.errors.OpError) as error:
        raise NoOperatorError(str(error)) from error

    def store(tensors: Sequence[Any], arrays: Sequence[np.ndarray]) -> Any:
        return operator(
            tensors,
            addresses=[array.ctypes.data for array in arrays],
            nbytes=[array.nbytes for array in arrays],
        )

    return store


def _directory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "skate"


def _version() -> str:
    """Of all that the library depends on."""
    parts = [SOURCE.read_text(), *_flags(), os.path.dirname(tf.__file__)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{tf.__version__}-{digest[:16]}"


def _flags() -> list[str]:
    return [*tf.sysconfig.get_compile_flags(), *tf.sysconfig.get_link_flags()]


def _compile(library: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        raise NoOperatorError("there is no g++, and CXX names no compiler")
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [compiler, "-shared", "-fPIC", "-O2", "-w", str(SOURCE)]
        try:
            done = subprocess.run(
                [*command, "-o", str(made), *_flags()],
                capture_output=True,
                text=True,
                timeout=COMPILE_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise NoOperatorError(str(error)) from error
        if done.returncode:
            raise NoOperatorError(f"{compiler} failed: {done.stderr[-500:]}")
        made.replace(library)
