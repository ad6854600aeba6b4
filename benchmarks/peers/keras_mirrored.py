"""TensorFlow's MultiWorkerMirroredStrategy with tf_keras: it does not know Keras 3."""

from __future__ import annotations

import json
import os
import socket
import time
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
    """One worker, in its own process: seconds of an iteration, for each window."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["TF_CONFIG"] = json.dumps(
        {
            "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]},
            "task": {"type": "worker", "index": rank},
        }
    )
    import tensorflow as tf
    import tf_keras

    tf.config.threading.set_intra_op_parallelism_threads(1)
    # A collective operation keeps its thread until the other worker has come to it,
    # too: with one thread for operations the two wait for each other for ever.
    tf.config.threading.set_inter_op_parallelism_threads(4)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = tf_keras.applications.ResNet101(
            weights=None, input_shape=(size, size, 3), classes=1000
        )
        optimizer = tf_keras.optimizers.SGD(0.01, momentum=0.9)
        optimizer.build(model.trainable_variables)
    x = tf.random.normal((batch, size, size, 3))
    y = tf.zeros(batch, tf.int64)
    loss_of = tf_keras.losses.SparseCategoricalCrossentropy(reduction="none")

    def of_one_replica() -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(loss_of(y, model(x, training=True))) / len(ports)
        variables = model.trainable_variables
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    @tf.function
    def iteration() -> None:
        strategy.run(of_one_replica)

    times = []
    for window in range(-1, config["windows"]):
        started = time.perf_counter()
        count = WARM_UP if window < 0 else config["iterations"]
        for _ in range(count):
            iteration()
        if window >= 0:
            times.append((time.perf_counter() - started) / count)
    pipe.send(times)


def measure(workers: int, batch: int, size: int, config: dict[str, Any]) -> list[float]:
    """Seconds of an iteration, by window, of the slowest worker."""
    ports = free_ports(workers)
    by_rank = answers(worker, workers, ports, batch, size, config)
    return [max(times) for times in zip(*by_rank, strict=True)]
