"""What does a parameter server cost beside two processes that do not communicate?

ResNet-101 of the paper's figure 13, batch 2 at 3x64x64, two workers of one thread. Run
it alone: ``python -m benchmarks.parameter_server``. It prints images/s, windows of all
forms in turn, and the share of the bound.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

import skate
from skate import train

BATCH, SIZE, WORKERS = 2, 64, 2


def resnet101() -> Any:
    """ResNet-101 without a package of models: 44,549,160 parameters."""
    import torch
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self, inside: int, width: int, stride: int) -> None:
            super().__init__()
            out = width * 4
            self.body = nn.Sequential(
                nn.Conv2d(inside, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, out, 1, bias=False),
                nn.BatchNorm2d(out),
            )
            self.short: Any = nn.Identity()
            if stride != 1 or inside != out:
                self.short = nn.Sequential(
                    nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out)
                )

        def forward(self, x: Any) -> Any:
            return torch.relu(self.body(x) + self.short(x))

    layers: list[Any] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    inside = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 23, 2), (512, 3, 2)):
        for i in range(blocks):
            layers.append(Bottleneck(inside, width, stride if i == 0 else 1))
            inside = width * 4
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000)
    )


def make_model() -> Any:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    return resnet101()


def loop(config: dict[str, Any]) -> None:
    """One rank: all forms, in turn, so that a slow minute falls on each of them."""
    import torch

    from skate.train.served_model import ServedModel

    context = train.context()
    steps: dict[str, Any] = {}
    x = torch.randn(BATCH, 3, SIZE, SIZE)
    y = torch.randint(0, 1000, (BATCH,))

    def make_step(model: Any, finish: Any) -> Any:
        def step() -> None:
            torch.nn.functional.cross_entropy(model(x), y).backward()
            finish()

        return step

    model = make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def alone() -> None:
        sgd.step()
        sgd.zero_grad()

    steps["bound"] = make_step(model, alone)
    for name, server in config["servers"].items():
        model = make_model()
        served = ServedModel(server.join(), model)
        local = None
        if name.startswith("sums"):
            local = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        steps[name] = make_step(model, lambda s=served, o=local: s.step(o))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for window in range(-1, config["windows"]):  # the first one warms up
        for name, step in steps.items():
            context.barrier()
            started = time.perf_counter()
            for _ in range(config["iterations"]):
                step()
            context.barrier()
            if window >= 0:
                took = np.array([time.perf_counter() - started])
                slowest = float(context.allreduce(took, op="max")[0])
                times[name].append(slowest / config["iterations"])
    context.report({"times": times})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=7)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--forms", nargs="*", default=None)
    options = parser.parse_args()
    skate.init(num_cpus=4)
    from skate.train.served_model import parameters_of

    params = parameters_of(make_model())
    sgd = train.SGD(0.01, momentum=0.9)
    forms: dict[str, dict[str, Any]] = {
        "workers": {"placement": "workers", "optimizer": sgd},
        "actors": {"placement": "actors", "optimizer": sgd},
        "sums, actors": {"placement": "actors", "optimizer": None, "reduce": "mean"},
        "sums, workers": {"placement": "workers", "optimizer": None, "reduce": "mean"},
    }
    chosen = options.forms or list(forms)
    servers = {
        name: train.ParameterServer(params, num_shards=WORKERS, **forms[name])
        for name in chosen
    }
    config = {
        "servers": servers,
        "windows": options.windows,
        "iterations": options.iterations,
    }
    times = train.run(loop, WORKERS, config=config).metrics["times"]
    images = {
        name: [round(WORKERS * BATCH / t, 2) for t in windows]
        for name, windows in times.items()
    }
    for name, windows in images.items():
        middle = statistics.median(windows)
        # Of windows that were measured one after the other: a slow minute cancels out.
        pairs = zip(windows, images["bound"], strict=True)
        share = statistics.median(ours / bound for ours, bound in pairs)
        print(f"{name:<16} {middle:6.2f} images/s  {share:5.2f}  {windows}")
    print(json.dumps(images))


if __name__ == "__main__":
    main()
