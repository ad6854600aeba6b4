"""torch.distributed over gloo, as DDP uses it on CPUs."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from ..allreduce import SIZES, name_of
from ..harness import Timer, Work
from .allreduce_ranks import Reduce, as_cases, in_processes, measure_all


def rank(rank: int, ranks: int, folder: str, pipe: Any) -> None:
    """One rank, in its own process."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(minutes=2)
    )

    def make(size: str) -> Iterator[tuple[str, Any, Reduce]]:
        yield name_of(ranks, size, True), torch.ones(SIZES[size]), dist.all_reduce

    pipe.send(json.dumps(measure_all(ranks, make)))
    dist.barrier()
    dist.destroy_process_group()


def cases(group: str, timer: Timer) -> Iterator[tuple[str, Work]]:
    """Ordinary tensors; their time stands for arrays of the group, too."""
    ranks = int(group)
    with tempfile.TemporaryDirectory() as folder:
        found = as_cases(lambda: in_processes(rank, ranks, folder), ranks, (True,))
        for name, work in found:
            yield name, work
            yield name.removesuffix(", copied"), work
