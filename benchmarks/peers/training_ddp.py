"""torch's DistributedDataParallel over gloo, as it is and with views of buckets."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

from ..harness import Timer, Work
from . import training_model as common
from .training_bound import run


def worker(
    rank: int, setting: str, view: bool, folder: str, barrier: Any, pipe: Any
) -> None:
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(f"{folder}/store", common.WORKERS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=common.WORKERS)
    model = common.make_model(rank)
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=view)
    backward = common.make_backward(parallel, setting, rank)
    iteration = common.make_iteration(backward, common.make_sgd(parallel))
    pipe.send(common.time_windows(iteration, setting, barrier.wait))
    dist.barrier()
    dist.destroy_process_group()


def cases(group: str, timer: Timer) -> Iterator[tuple[str, Work]]:
    for name, view in ((group, False), (f"{group}, views of buckets", True)):

        def work(view: bool = view) -> Any:
            with tempfile.TemporaryDirectory() as folder:
                return run(worker, group, view, folder)

        yield name, work
