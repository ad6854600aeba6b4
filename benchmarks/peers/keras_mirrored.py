"""TensorFlow's MultiWorkerMirroredStrategy with tf_keras: it does not know Keras 3.

By ``train_on_batch``, as skate's; and by a training loop of one's own, which its guide
shows as the other way: that is quicker.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from .spawned import answers

WARM_UP = 3


def free_ports(number: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def worker(
    rank: int,
    ports: list[int],
    batch: int,
    size: int,
    config: dict[str, Any],
    pipe: Any,
) -> None:
    """One worker, in its own process: seconds of an iteration, by form and window."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["TF_CONFIG"] = json.dumps(
        {
            "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]},
            "task": {"type": "worker", "index": rank},
        }
    )
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    # A collective operation keeps its thread until the other worker has come to it,
    # too: with one thread for operations the two wait for each other for ever.
    tf.config.threading.set_inter_op_parallelism_threads(4)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    x = tf.random.normal((batch, size, size, 3))
    y = tf.zeros(batch, tf.int64)
    steps = {
        "MultiWorkerMirrored": by_keras(strategy, size, x, y),
        "Mirrored, own loop": own_loop(strategy, size, x, y, len(ports)),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for window in range(-1, config["windows"]):
        for name, step in steps.items():
            count = WARM_UP if window < 0 else config["iterations"]
            started = time.perf_counter()
            for _ in range(count):
                step()
            if window >= 0:
                times[name].append((time.perf_counter() - started) / count)
    pipe.send(times)


def resnet(size: int) -> Any:
    import tf_keras

    return tf_keras.applications.ResNet101(
        weights=None, input_shape=(size, size, 3), classes=1000
    )


def by_keras(strategy: Any, size: int, x: Any, y: Any) -> Callable[[], object]:
    """A step by ``train_on_batch``."""
    import tf_keras

    with strategy.scope():
        model = resnet(size)
        sgd = tf_keras.optimizers.SGD(0.01, momentum=0.9)
        model.compile(sgd, loss="sparse_categorical_crossentropy")
    return lambda: model.train_on_batch(x, y)


def own_loop(
    strategy: Any, size: int, x: Any, y: Any, workers: int
) -> Callable[[], object]:
    """A step by a tape in ``strategy.run``."""
    import tensorflow as tf
    import tf_keras

    with strategy.scope():
        model = resnet(size)
        optimizer = tf_keras.optimizers.SGD(0.01, momentum=0.9)
        optimizer.build(model.trainable_variables)
    loss_of = tf_keras.losses.SparseCategoricalCrossentropy(reduction="none")

    def of_one_replica() -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(loss_of(y, model(x, training=True))) / workers
        variables = model.trainable_variables
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    @tf.function
    def iteration() -> None:
        strategy.run(of_one_replica)

    return iteration


def measure(
    workers: int, batch: int, size: int, config: dict[str, Any]
) -> dict[str, list[float]]:
    """Seconds of an iteration of each form, by window, of the slowest worker."""
    ports = free_ports(workers)
    by_rank = answers(worker, workers, ports, batch, size, config)
    return {
        name: [max(times) for times in zip(*(r[name] for r in by_rank), strict=True)]
        for name in by_rank[0]
    }
