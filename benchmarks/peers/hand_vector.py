"""A vector environment by hand: shared memory, an eventfd each way for each worker.

What one writes for one environment of known shapes that never fails: no infos, no
faults, no other engine. The floor of what processes cost here.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import SyncVectorEnv

CONTEXT = multiprocessing.get_context("fork")
END_S = 5.0


class HandVector:
    """``n`` environments with Box spaces; the caller steps as many as each worker."""

    def __init__(
        self, make: Callable[[], gymnasium.Env], n: int, num_workers: int
    ) -> None:
        self._mine = n // num_workers
        self._envs = SyncVectorEnv([make] * self._mine, copy=False)
        self.single_action_space = self._envs.single_action_space
        self.action_space = self._envs.action_space
        observation = self._envs.single_observation_space
        self._actions = _shared((n, *self.single_action_space.shape), np.float32)
        self._results = (
            _shared((n, *observation.shape), np.float32),
            _shared((n,), np.float64),
            _shared((n,), np.bool_),
            _shared((n,), np.bool_),
        )
        self._begin = [os.eventfd(0) for _ in range(1, num_workers)]
        self._end = [os.eventfd(0) for _ in range(1, num_workers)]
        self._processes = [
            CONTEXT.Process(target=self._work, args=(make, i), daemon=True)
            for i in range(num_workers - 1)
        ]
        for process in self._processes:
            process.start()

    def reset(self) -> None:
        self._envs.reset()
        for end in self._end:  # theirs are reset when they begin
            os.eventfd_read(end)

    def step(self, actions: Any) -> tuple[Any, ...]:
        self._actions[:] = actions
        for begin in self._begin:
            os.eventfd_write(begin, 1)
        self._step(self._envs, slice(0, self._mine))
        for end in self._end:
            os.eventfd_read(end)
        return (*(result.copy() for result in self._results), {})

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join(END_S)
        for descriptor in (*self._begin, *self._end):
            os.close(descriptor)
        self._envs.close()

    def _work(self, make: Callable[[], gymnasium.Env], worker: int) -> None:
        envs = SyncVectorEnv([make] * self._mine, copy=False)
        envs.reset()
        first = (worker + 1) * self._mine
        while True:
            os.eventfd_write(self._end[worker], 1)
            os.eventfd_read(self._begin[worker])
            self._step(envs, slice(first, first + self._mine))

    def _step(self, envs: SyncVectorEnv, rows: slice) -> None:
        results = envs.step(self._actions[rows])
        for whole, part in zip(self._results, results[:4], strict=True):
            whole[rows] = part


def _shared(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size), dtype).reshape(shape)
