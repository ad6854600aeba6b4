"""How fast do two Keras 3 workers train together, beside two that do not communicate?

ResNet-101 on TensorFlow, batch 2 at 3x64x64 (178 MB of gradients an iteration), one
thread a worker: ``python -m benchmarks.training_keras``. It prints images/s of all
forms, windows in turn, and the share of the bound: skate's as it comes, with every rank
stepping everything, and without the compiled operators. After them come those of
TensorFlow's MultiWorkerMirroredStrategy, which needs tf_keras.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np

import skate
from skate import train

from .peers import keras_mirrored
from .windows import BOUND, measure, options, show

BATCH, SIZE, WORKERS = 2, 64, 2


def loop(config: dict[str, Any]) -> None:
    """One rank: all forms, in turn, so that a slow minute falls on each of them."""
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
        BOUND: make_step(lambda optimizer: optimizer),
        "skate": make_step(DistributedOptimizer),
        "skate, replicated": make_step(partial(DistributedOptimizer, shard=False)),
        "skate, from Python": make_step(partial(DistributedOptimizer, operator=False)),
    }
    windows, iterations = config["windows"], config["iterations"]
    context.report({"times": measure(context, steps, windows, iterations)})


def main() -> None:
    asked = options(__doc__)
    asked.add_argument("--without-mirrored", action="store_true")
    config = vars(asked.parse_args())
    with skate.init(num_cpus=WORKERS):
        times = train.run(loop, WORKERS, config=config).metrics["times"]
    if not config["without_mirrored"]:
        times |= keras_mirrored.measure(WORKERS, BATCH, SIZE, config)
    show(times, WORKERS * BATCH)


if __name__ == "__main__":
    main()
