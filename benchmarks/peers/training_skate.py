"""skate.train: allreduce, and a parameter server whose shards the workers host."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import skate
from skate import train

from ..harness import Samples, Timer, Work
from . import training_model as common


def loop(config: dict[str, Any]) -> None:
    """One rank: windows of one way."""
    from skate.train.torch import DistributedOptimizer

    context = train.context()
    model = common.make_model(context.rank)
    optimizer = DistributedOptimizer(
        common.make_sgd(model), model, sync=config["sync"], overlap=config["overlap"]
    )
    backward = common.make_backward(model, config["setting"], context.rank)
    iteration = common.make_iteration(backward, optimizer)
    extra = 12 if config["overlap"] == "auto" else 0
    samples = common.time_windows(iteration, config["setting"], context.barrier, extra)
    _report(context, samples)


def pairs(config: dict[str, Any]) -> None:
    """One rank: iterations of its own and with the others, in turn; their ratio."""
    from skate.train.torch import DistributedOptimizer

    context = train.context()
    setting = config["setting"]
    alone = common.make_model(context.rank)
    together = common.make_model(context.rank)
    optimizer = DistributedOptimizer(
        common.make_sgd(together), together, sync=config["sync"], overlap=False
    )
    iterations = [
        common.make_iteration(common.make_backward(model, setting, context.rank), one)
        for model, one in ((alone, common.make_sgd(alone)), (together, optimizer))
    ]
    samples = []
    for number in range(-common.WARM_UP[setting], common.PAIRS[setting]):
        times = [_time(iteration, context.barrier) for iteration in iterations]
        if number >= 0:
            samples.append(times)
    own, shared = ([pair[i] for pair in samples] for i in (0, 1))
    import numpy as np

    # Of each pair, the slowest rank counts; then the ratio.
    both = context.allreduce(np.array([own, shared]), "max")
    context.report({"samples": (both[1] / both[0]).tolist()})


def _time(iteration: Callable[[], None], meet: Callable[[], None]) -> float:
    meet()
    start = time.perf_counter()
    iteration()
    return time.perf_counter() - start


def _report(context: train.Context, samples: Samples) -> None:
    import numpy as np

    slowest = context.allreduce(np.array(samples), "max")
    context.report({"samples": slowest.tolist()})


def _run(loop: Callable[..., None], **config: Any) -> Samples:
    skate.init("embedded")
    try:
        result = train.run(loop, common.WORKERS, config=config)
    finally:
        skate.shutdown()
    samples: Samples = result.metrics["samples"]
    return samples


def cases(group: str, timer: Timer) -> Iterator[tuple[str, Work]]:
    """Both ways, alone and in pairs with iterations that do not communicate."""
    ways = {"allreduce": "allreduce", "parameter server": "parameter_server"}
    for name, sync in ways.items():
        yield (
            f"{group}, {name}",
            lambda sync=sync: _run(loop, setting=group, sync=sync, overlap=False),
        )
        yield (
            f"{group}, {name}: time beside the bound, in pairs",
            lambda sync=sync: _run(pairs, setting=group, sync=sync),
        )
    if group == "comm":
        yield (
            f"{group}, allreduce during backward",
            lambda: _run(loop, setting=group, sync="allreduce", overlap=True),
        )
