"""skate as a backend of joblib, and so of scikit-learn.

>>> from skate.util.joblib import register
>>> register()
>>> with joblib.parallel_config(backend="skate"):
...     joblib.Parallel()(joblib.delayed(abs)(i) for i in [-1, 2])
[1, 2]
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import skate

try:
    from joblib import register_parallel_backend
    from joblib._parallel_backends import (
        AutoBatchingMixin,
        ParallelBackendBase,
        SequentialBackend,
    )
except ImportError as error:
    raise ImportError(
        "skate.util.joblib needs joblib, which is not installed: pip install "
        "'skate[util]'"
    ) from error

__all__ = ["SkateBackend", "register"]

_LARGE = 100_000  # bytes: such an array goes to the store once, and not with each call


def register(name: str = "skate", make_default: bool = False) -> None:
    """Let joblib use skate: ``joblib.parallel_config(backend="skate")``.

    Args:
        name: of the backend.
        make_default: use it wherever no other is asked for.
    """
    register_parallel_backend(name, SkateBackend, make_default=make_default)


@skate.remote
def _run_batch(batch: Any) -> Any:
    batch.items = [
        (
            function,
            [_value(arg) for arg in args],
            {key: _value(arg) for key, arg in kwargs.items()},
        )
        for function, args, kwargs in batch.items
    ]
    return batch()


def _value(arg: Any) -> Any:
    return skate.get(arg.ref) if isinstance(arg, _Shared) else arg


class _Shared:
    """Stands for an array that is in the store."""

    def __init__(self, ref: skate.ObjectRef[Any]) -> None:
        self.ref = ref


class SkateBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """Each batch of joblib's is a task. Large arrays are shared, and read-only there.

    Args:
        ray_remote_args: options of the tasks, such as ``{"num_cpus": 2}``.
        nesting_level: joblib's.
        inner_max_num_threads: not supported; workers compute with one thread each.
    """

    supports_retrieve_callback = True
    supports_sharedmem = False
    uses_threads = False

    # Seconds that joblib aims at for a batch; a task costs some microseconds here.
    MIN_IDEAL_BATCH_DURATION = 0.005
    MAX_IDEAL_BATCH_DURATION = 0.05

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        ray_remote_args: Mapping[str, Any] | None = None,
        **backend_kwargs: Any,
    ) -> None:
        super().__init__(
            nesting_level=nesting_level,
            inner_max_num_threads=inner_max_num_threads,
            **backend_kwargs,
        )
        self._options = dict(ray_remote_args or {})
        # Arrays that several batches of one call have among their arguments.
        self._shared: dict[int, tuple[Any, _Shared]] = {}

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many tasks may run at once; -1 is one for each CPU of the session."""
        if n_jobs == 0:
            raise ValueError("n_jobs must not be 0; -1 stands for all CPUs.")
        if n_jobs is None:
            return 1
        if n_jobs > 0:
            return n_jobs
        return max(1, int(skate.cluster_resources()["CPU"]) + 1 + n_jobs)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        ray_remote_args: Mapping[str, Any] | None = None,
        **backend_kwargs: Any,
    ) -> int:
        """Called by joblib when a ``Parallel`` starts; how many jobs it gets."""
        if ray_remote_args is not None:
            self._options = dict(ray_remote_args)
        jobs: int = super().configure(
            n_jobs, parallel, prefer, require, **backend_kwargs
        )
        self._task = _run_batch.options(**self._options)
        return jobs

    def submit(
        self, func: Any, callback: Callable[[Any], object] | None = None
    ) -> Future[Any]:
        """Start a batch."""
        future: Future[Any]
        try:
            future = self._task.remote(self._share_arrays(func)).future()
        except Exception as error:
            # joblib submits most batches in a callback, where nobody would see it.
            future = Future()
            future.set_exception(error)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # the name before joblib 1.5

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """The results of a batch, or its error."""
        return out.result()

    def stop_call(self) -> None:
        """Called by joblib when a ``Parallel`` ends."""
        self._shared.clear()

    def get_nested_backend(self) -> tuple[Any, Any]:
        """Parallelism inside of tasks: none, since the CPUs are busy."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None

    def _share_arrays(self, batch: Any) -> Any:
        shared = copy.copy(batch)
        shared.items = [
            (
                function,
                [self._share(arg) for arg in args],
                {key: self._share(arg) for key, arg in kwargs.items()},
            )
            for function, args, kwargs in batch.items
        ]
        return shared

    def _share(self, arg: Any) -> Any:
        if getattr(arg, "nbytes", 0) < _LARGE or not hasattr(arg, "dtype"):
            return arg
        found = self._shared.get(id(arg))
        if found is None:
            found = self._shared[id(arg)] = arg, _Shared(skate.put(arg))
        return found[1]
