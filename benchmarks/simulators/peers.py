"""Each peer as a pool: ``n`` workers, and results as they finish."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, Protocol

from .workload import Done, Evaluate, evaluate

Function = Callable[[Any], Done]


class Pool(Protocol):
    """What the question asks of a peer."""

    def run(self, function: Function, configs: Sequence[Any]) -> Iterable[Done]:
        """Call ``function`` for each, one task each; results as they finish."""

    def run_es(self, weights: Any, configs: Sequence[Any]) -> Iterable[Done]:
        """The same for a rollout of evolution strategies with new weights."""

    def close(self) -> None: ...


class Loop:
    """One process, without any pool: what there is to lose."""

    def __init__(self, n: int) -> None:
        assert n == 1

    def run(self, function: Function, configs: Sequence[Any]) -> Iterator[Done]:
        return map(function, configs)

    def run_es(self, weights: Any, configs: Sequence[Any]) -> Iterator[Done]:
        return map(Evaluate(weights), configs)

    def close(self) -> None:
        pass


class Skate:
    """sim.run, without hints."""

    def __init__(self, n: int) -> None:
        import skate

        # Workers are forked from a process that has imported this already, as those of
        # a forked pool are.
        skate.init(num_cpus=n, preload=["skate.sim", "benchmarks.simulators.workload"])

    def run(self, function: Function, configs: Sequence[Any]) -> Iterator[Done]:
        from skate import sim

        return sim.run(function, configs)

    def run_es(self, weights: Any, configs: Sequence[Any]) -> Iterator[Done]:
        return self.run(Evaluate(weights), configs)

    def close(self) -> None:
        import skate

        skate.shutdown()


class SkateCost(Skate):
    """sim.run with the length of each run as its cost."""

    def run(self, function: Function, configs: Sequence[Any]) -> Iterator[Done]:
        from skate import sim

        return sim.run(function, configs, cost=configs)


class SkateLearn(Skate):
    """sim.run with costs learned from an earlier pass over the same runs."""

    def run(self, function: Function, configs: Sequence[Any]) -> Iterator[Done]:
        from skate import sim

        return sim.run(function, configs, cost="learn")


class Ray:
    """Ray tasks, gathered by ray.wait as its documentation shows."""

    def __init__(self, n: int) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray

        self._ray = ray
        ray.init(
            num_cpus=n,
            logging_level=logging.ERROR,
            log_to_driver=False,
            include_dashboard=False,
        )
        self._remote: dict[Any, Any] = {}

    def run(self, function: Function, configs: Sequence[Any]) -> Iterator[Done]:
        if function not in self._remote:
            self._remote[function] = self._ray.remote(function)
        task = self._remote[function]
        return self._gather([task.remote(config) for config in configs])

    def run_es(self, weights: Any, configs: Sequence[Any]) -> Iterator[Done]:
        if "es" not in self._remote:
            self._remote["es"] = self._ray.remote(evaluate)
        task, shared = self._remote["es"], self._ray.put(weights)
        return self._gather([task.remote(shared, config) for config in configs])

    def _gather(self, pending: list[Any]) -> Iterator[Done]:
        while pending:
            ready, pending = self._ray.wait(pending)
            yield from self._ray.get(ready)

    def close(self) -> None:
        self._ray.shutdown()


def _evaluate_group(weights: Any, group: Sequence[Any]) -> list[Done]:
    return [evaluate(weights, config) for config in group]


class RayByHand(Ray):
    """Ray, where the user has put 20 rollouts into each task."""

    def run_es(self, weights: Any, configs: Sequence[Any]) -> Iterator[Done]:
        if "es" not in self._remote:
            self._remote["es"] = self._ray.remote(_evaluate_group)
        task, shared = self._remote["es"], self._ray.put(weights)
        groups = [configs[i : i + 20] for i in range(0, len(configs), 20)]
        for done in self._gather([task.remote(shared, group) for group in groups]):
            yield from done  # type: ignore[misc]  # a group's results


class ProcessPool:
    """multiprocessing.Pool, one task at a time."""

    def __init__(self, n: int) -> None:
        self._pool = multiprocessing.Pool(n)

    def run(self, function: Function, configs: Sequence[Any]) -> Iterator[Done]:
        return self._pool.imap_unordered(function, configs)

    def run_es(self, weights: Any, configs: Sequence[Any]) -> Iterator[Done]:
        return self.run(Evaluate(weights), configs)

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()


class Executor:
    """concurrent.futures.ProcessPoolExecutor."""

    def __init__(self, n: int) -> None:
        self._pool: Any = self._make(n)

    def _make(self, n: int) -> Any:
        return futures.ProcessPoolExecutor(n)

    def run(self, function: Function, configs: Sequence[Any]) -> Iterator[Done]:
        submitted = [self._pool.submit(function, config) for config in configs]
        return (done.result() for done in futures.as_completed(submitted))

    def run_es(self, weights: Any, configs: Sequence[Any]) -> Iterator[Done]:
        return self.run(Evaluate(weights), configs)

    def close(self) -> None:
        self._pool.shutdown()


class Loky(Executor):
    """loky, which joblib runs on."""

    def _make(self, n: int) -> Any:
        import loky

        return loky.get_reusable_executor(n, timeout=1000)


class Dask:
    """dask.distributed on this machine."""

    def __init__(self, n: int) -> None:
        from distributed import Client, LocalCluster

        self._cluster = LocalCluster(
            n_workers=n,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=logging.ERROR,
        )
        self._client = Client(self._cluster)

    def run(self, function: Function, configs: Sequence[Any]) -> Iterator[Done]:
        from distributed import as_completed

        # pure=False: two equal configurations are two simulations.
        submitted = self._client.map(function, configs, pure=False)
        return (result for _, result in as_completed(submitted, with_results=True))

    def run_es(self, weights: Any, configs: Sequence[Any]) -> Iterator[Done]:
        return self.run(Evaluate(weights), configs)

    def close(self) -> None:
        self._client.close()
        self._cluster.close()


POOLS: dict[str, Callable[[int], Pool]] = {
    "skate": Skate,
    "skate_cost": SkateCost,
    "skate_learn": SkateLearn,
    "loop": Loop,
    "ray": Ray,
    "ray_by_hand": RayByHand,
    "pool": ProcessPool,
    "executor": Executor,
    "loky": Loky,
    "dask": Dask,
}
MPI = "mpi"


def mpi_command(n: int, arguments: Sequence[str]) -> list[str]:
    """The program of ``mpi_barriers`` on n ranks of this machine."""
    command = ["mpirun", "--oversubscribe", "--bind-to", "none"]
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")
    module = "benchmarks.simulators.mpi_barriers"
    return [*command, "-n", str(n), sys.executable, "-m", module, *arguments]
