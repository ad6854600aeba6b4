"""Ray: Train's TorchTrainer, and a sharded parameter server written on actors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from ..harness import Samples, Timer, Work
from . import training_model as common


def _start() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(
        num_cpus=4,
        object_store_memory=4 << 30,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
    )
    return ray


def train_loop(config: dict[str, Any]) -> None:
    """A worker of TorchTrainer."""
    import json
    from pathlib import Path

    import ray.train.torch
    import torch.distributed as dist

    rank = ray.train.get_context().get_world_rank()
    model = ray.train.torch.prepare_model(common.make_model(rank))
    common.torch.set_num_threads(1)
    backward = common.make_backward(model, config["setting"], rank)
    iteration = common.make_iteration(backward, common.make_sgd(model))
    samples = common.time_windows(iteration, config["setting"], dist.barrier)
    Path(config["folder"], f"{rank}.json").write_text(json.dumps(samples))


def _ray_train(setting: str) -> Samples:
    import json
    import tempfile
    from pathlib import Path

    ray = _start()
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    try:
        with tempfile.TemporaryDirectory() as folder:
            TorchTrainer(
                train_loop,
                train_loop_config={"setting": setting, "folder": folder},
                scaling_config=ScalingConfig(num_workers=common.WORKERS),
                run_config=RunConfig(storage_path=folder),
            ).fit()
            files = [Path(folder, f"{rank}.json") for rank in range(common.WORKERS)]
            return common.slowest([json.loads(file.read_text()) for file in files])
    finally:
        ray.shutdown()


def _parameter_server(setting: str) -> Samples:
    """Shards sum what workers push and step their slice; workers read all slices."""
    ray = _start()
    import numpy as np
    import torch

    @ray.remote(num_cpus=1)
    class Shard:
        def __init__(self, weights: Any) -> None:
            self.weights = weights.copy()
            self.momentum = np.zeros_like(weights)

        def step(self, *gradients: Any) -> Any:
            total = gradients[0] + gradients[1]
            total /= len(gradients)
            self.momentum *= common.MOMENTUM
            self.momentum += total
            self.weights -= common.LEARNING_RATE * self.momentum
            return self.weights

    @ray.remote(num_cpus=1)
    class Worker:
        def __init__(self, rank: int) -> None:
            self.model = common.make_model(0)
            self.backward = common.make_backward(self.model, setting, rank)
            self.parameters = list(self.model.parameters())

        def weights(self) -> Any:
            flat = torch.nn.utils.parameters_to_vector(self.parameters)
            return flat.detach().numpy()

        def gradients(self, shards: int, *weights: Any) -> Any:
            if weights:
                flat = torch.from_numpy(np.concatenate(weights))
                torch.nn.utils.vector_to_parameters(flat, self.parameters)
            for p in self.parameters:
                p.grad = None
            self.backward()
            flat = torch.cat([p.grad.reshape(-1) for p in self.parameters])
            return np.array_split(flat.numpy(), shards)

    try:
        workers = [Worker.remote(rank) for rank in range(common.WORKERS)]
        parts = np.array_split(ray.get(workers[0].weights.remote()), common.WORKERS)
        shards = [Shard.remote(part) for part in parts]
        weights: list[Any] = []

        def iteration() -> None:
            pushed = [
                worker.gradients.options(num_returns=len(shards)).remote(
                    len(shards), *weights
                )
                for worker in workers
            ]
            weights[:] = [
                shard.step.remote(*(one[index] for one in pushed))
                for index, shard in enumerate(shards)
            ]
            ray.wait(weights, num_returns=len(weights), fetch_local=False)

        return common.time_windows(iteration, setting, lambda: None)
    finally:
        ray.shutdown()


def cases(group: str, timer: Timer) -> Iterator[tuple[str, Work]]:
    """The parameter server where communication counts."""
    yield group, lambda: _ray_train(group)
    if group == "comm":
        yield (
            f"{group}, parameter server on actors",
            lambda: _parameter_server(group),
        )
