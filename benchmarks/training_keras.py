"""How fast do two Keras 3 workers train together, beside two that do not communicate?

ResNet-101 on TensorFlow, batch 2 at 3x64x64 (178 MB of gradients an iteration), one
thread a worker: ``python -m benchmarks.training_keras``. It prints images/s of both
forms, windows in turn, and the share of the bound.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

import numpy as np

import skate
from skate import train

BATCH, SIZE, WORKERS = 2, 64, 2


def loop(config: dict[str, Any]) -> None:
    """One rank: both forms, in turn, so that a slow minute falls on each of them."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras
    import tensorflow as tf

    from skate.train.tensorflow import DistributedOptimizer

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    context = train.context()
    x = np.random.default_rng(0).normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32)
    y = np.zeros(BATCH, np.int64)

    def make_step(wrap: Any) -> Any:
        model = keras.applications.ResNet101(
            weights=None, input_shape=(SIZE, SIZE, 3), classes=1000
        )
        model.compile(
            wrap(keras.optimizers.SGD(0.01, momentum=0.9)),
            loss="sparse_categorical_crossentropy",
            jit_compile=False,
        )
        data = tf.constant(x), tf.constant(y)
        return lambda: model.train_on_batch(*data)

    steps = {
        "bound": make_step(lambda optimizer: optimizer),
        "skate": make_step(DistributedOptimizer),
    }
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
    skate.init(num_cpus=WORKERS)
    config = vars(parser.parse_args())
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
        print(f"{name:<8} {middle:6.2f} images/s  {share:5.2f}  {windows}")
    print(json.dumps(images))


if __name__ == "__main__":
    main()
