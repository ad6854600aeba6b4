"""What does a parameter server cost beside two processes that do not communicate?

ResNet-101 of the paper's figure 13, batch 2 at 3x64x64, two workers of one thread. Run
it alone: ``python -m benchmarks.parameter_server``. It prints images/s, windows of all
forms in turn, and the share of the bound.
"""

from __future__ import annotations

from typing import Any

import skate
from skate import train

from .peers.training_model import (
    BATCH,
    LEARNING_RATE,
    MOMENTUM,
    WORKERS,
    make_backward,
    make_model,
    make_sgd,
)
from .windows import BOUND, measure, options, show

SETTING = "comm"


def loop(config: dict[str, Any]) -> None:
    """One rank: all forms, in turn, so that a slow minute falls on each of them."""
    from skate.train.served_model import ServedModel

    context = train.context()

    def make_step(model: Any, finish: Any) -> Any:
        backward = make_backward(model, SETTING, context.rank)

        def step() -> None:
            backward()
            finish()

        return step

    model = make_model()
    sgd = make_sgd(model)

    def alone() -> None:
        sgd.step()
        sgd.zero_grad()

    steps = {BOUND: make_step(model, alone)}
    for name, server in config["servers"].items():
        model = make_model()
        served = ServedModel(server.join(), model)
        local = make_sgd(model) if name.startswith("sums") else None
        steps[name] = make_step(model, lambda s=served, o=local: s.step(o))
    windows, iterations = config["windows"], config["iterations"]
    context.report({"times": measure(context, steps, windows, iterations)})


def main() -> None:
    from skate.train.served_model import parameters_of

    sgd = train.SGD(LEARNING_RATE, momentum=MOMENTUM)
    forms: dict[str, dict[str, Any]] = {
        "workers": {"placement": "workers", "optimizer": sgd},
        "actors": {"placement": "actors", "optimizer": sgd},
        "sums, actors": {"placement": "actors", "optimizer": None, "reduce": "mean"},
        "sums, workers": {"placement": "workers", "optimizer": None, "reduce": "mean"},
    }
    asked = options(__doc__)
    asked.add_argument("--forms", nargs="*", choices=list(forms), default=list(forms))
    config = vars(asked.parse_args())
    with skate.init(num_cpus=2 * WORKERS):
        params = parameters_of(make_model())
        config["servers"] = {
            name: train.ParameterServer(params, num_shards=WORKERS, **forms[name])
            for name in config["forms"]
        }
        times = train.run(loop, WORKERS, config=config).metrics["times"]
        show(times, WORKERS * BATCH[SETTING])


if __name__ == "__main__":
    main()
