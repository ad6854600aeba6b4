"""Operators between tensors and memory that ranks share.

Compiled ones, made once and kept in a cache; or, where there is no compiler, functions
of Python in the graph.
"""

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
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

SOURCE = Path(__file__).with_suffix(".cc")
COMPILE_S = 300.0  # some five seconds, where nothing else runs

Copy = Callable[[Sequence[Any], Sequence[np.ndarray]], Any]


class Operators(NamedTuple):
    """Each takes tensors or variables, and as many arrays; gives a tensor to wait for.

    An array stays where it is as long as the graph lives.
    """

    kind: str
    store: Copy  # tensors into arrays
    load: Copy  # variables (of TensorFlow) from arrays


class NoOperatorError(Exception):
    """They cannot be compiled; says why."""


@functools.cache
def compiled() -> Operators:
    """The compiled operators. Compiles if no process has done so for this TensorFlow.

    Raises:
        NoOperatorError: there is no compiler, or it failed.
    """
    library = _directory() / f"{SOURCE.stem}-{_version()}.so"
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with library.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another rank may be at it
            if not library.exists():
                _compile(library)
        loaded = tf.load_op_library(str(library))
    except (OSError, tf.errors.OpError) as error:
        raise NoOperatorError(str(error)) from error

    def store(tensors: Sequence[Any], arrays: Sequence[np.ndarray]) -> Any:
        return loaded.skate_store(tensors, **_places(arrays))

    def load(variables: Sequence[Any], arrays: Sequence[np.ndarray]) -> Any:
        handles = [variable.handle for variable in variables]
        return loaded.skate_load(handles, **_places(arrays))

    return Operators("compiled", store, load)


def _places(arrays: Sequence[np.ndarray]) -> dict[str, list[int]]:
    return {
        "addresses": [array.ctypes.data for array in arrays],
        "nbytes": [array.nbytes for array in arrays],
    }


def from_python() -> Operators:
    """The same by ``tf.numpy_function``."""

    def store(tensors: Sequence[Any], arrays: Sequence[np.ndarray]) -> Any:
        def write(*values: Any) -> Any:
            for array, value in zip(arrays, values, strict=True):
                np.copyto(array, value)
            return np.int64(len(arrays))

        return tf.numpy_function(write, tensors, tf.int64)

    def load(variables: Sequence[Any], arrays: Sequence[np.ndarray]) -> Any:
        def read() -> list[np.ndarray]:
            return [array.copy() for array in arrays]

        values = tf.numpy_function(read, [], [v.dtype for v in variables])
        for variable, value in zip(variables, values, strict=True):
            value.set_shape(variable.shape)
            variable.assign(value)
        return values[0]

    return Operators("numpy_function", store, load)


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
