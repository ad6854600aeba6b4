"""A job for a cluster of three hosts. It prints one JSON document a line.

It waits for a line of input where the test ends a host.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import beside  # a module of the program's own: it must be sent along
import numpy as np

import skate
from skate import train


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


@skate.remote
def slow_square(x: int, seconds: float) -> tuple[int, str]:
    time.sleep(seconds)
    return beside.square(x), beside.address()


@skate.remote
def size_of(array: np.ndarray) -> tuple[int, bool, str]:
    return array.nbytes, array.flags.writeable, skate.__file__


@skate.remote(max_restarts=2, max_task_retries=-1, num_cpus=1)
class Counter:
    def __init__(self) -> None:
        self.calls = 0

    def where(self) -> str:
        self.calls += 1
        return beside.address()


def descend(config: dict[str, Any]) -> None:
    """Data-parallel gradient descent on y = 3 x - 1; goes on from its checkpoint."""
    context = train.context()
    step, weights = context.checkpoint or (0, np.zeros(2))
    begun = step
    x = np.linspace(-1, 1, 60)[context.rank :: context.world_size]
    while step < config["steps"]:
        error = weights[0] * x + weights[1] - (3 * x - 1)
        gradient = np.array([(error * x).mean(), error.mean()])
        weights = weights - 0.5 * context.allreduce(gradient, op="mean", timeout=60)
        step += 1
        time.sleep(0.05)  # so that a host can end in the middle
        hosts = np.zeros(context.world_size)
        hosts[context.rank] = int(beside.address().rpartition(".")[2])
        context.allreduce(hosts, timeout=60)
        context.report(
            {"step": step, "begun": begun, "hosts": hosts.tolist()},
            checkpoint=(step, weights),
        )


def main() -> None:
    say(nodes=sorted(node["NodeManagerAddress"] for node in skate.nodes()))
    refs = [slow_square.remote(x, 0.5) for x in range(12)]
    values = skate.get(refs)
    say(squares=[v for v, _ in values], hosts=sorted({host for _, host in values}))
    array = skate.put(np.ones(5_000_000))  # 40 MB, to the other hosts
    spread = size_of.options(scheduling_strategy="SPREAD")
    say(sizes=skate.get([spread.remote(array) for _ in range(6)]))
    counters = [Counter.remote() for _ in range(3)]
    say(actors=skate.get([counter.where.remote() for counter in counters]))

    long = [slow_square.remote(x, 4.0) for x in range(12)]
    say(ready="the test may end a host")
    sys.stdin.readline()
    say(survivors=skate.get([counter.where.remote() for counter in counters]))
    say(squares=[value for value, _ in skate.get(long)])
    for counter in counters:
        skate.kill(counter)


def training(directory: str) -> None:
    def on_report(metrics: Any, checkpoint: Any) -> None:
        if metrics["step"] in (1, 20):
            say(step=metrics["step"], hosts=metrics["hosts"])

    result = train.run(
        descend,
        num_workers=3,
        config={"steps": 120},
        checkpoint_dir=Path(directory),
        max_failures=3,
        on_report=on_report,
    )
    step, weights = result.checkpoint
    say(
        trained=[round(float(w), 2) for w in weights],
        step=step,
        begun=result.metrics["begun"],
        hosts=sorted(set(result.metrics["hosts"])),
    )


if __name__ == "__main__":
    main() if sys.argv[1] == "main" else training(sys.argv[2])
    skate.shutdown()
