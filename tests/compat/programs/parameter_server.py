"""Synchronous and asynchronous parameter servers (Ray's documentation), with NumPy."""

import numpy as np
import ray

ray.init(num_cpus=2)
DIMENSIONS = 10
TARGET = np.arange(DIMENSIONS, dtype=float)


@ray.remote
class ParameterServer:
    def __init__(self, lr):
        self.weights = np.zeros(DIMENSIONS)
        self.lr = lr

    def apply_gradients(self, *gradients):
        self.weights = self.weights - self.lr * np.stack(gradients).mean(axis=0)
        return self.weights

    def get_weights(self):
        return self.weights


@ray.remote
class DataWorker:
    def __init__(self, seed):
        self.generator = np.random.default_rng(seed)

    def compute_gradients(self, weights):
        noise = self.generator.normal(scale=0.01, size=DIMENSIONS)
        return weights - TARGET + noise


def loss(weights):
    return float(np.square(weights - TARGET).mean())


iterations, num_workers = 60, 2
ps = ParameterServer.remote(0.2)
workers = [DataWorker.remote(i) for i in range(num_workers)]
current_weights = ps.get_weights.remote()
for i in range(iterations):
    gradients = [worker.compute_gradients.remote(current_weights) for worker in workers]
    current_weights = ps.apply_gradients.remote(*gradients)
    if i % 20 == 0:
        print(f"iteration {i}: loss {loss(ray.get(current_weights)):.4f}")
print(f"synchronous: loss below 0.001: {loss(ray.get(current_weights)) < 1e-3}")

ps = ParameterServer.remote(0.1)
workers = [DataWorker.remote(i) for i in range(num_workers)]
current_weights = ps.get_weights.remote()
in_flight = {}
for worker in workers:
    in_flight[worker.compute_gradients.remote(current_weights)] = worker
for _ in range(iterations * num_workers):
    ready_gradient_list, _ = ray.wait(list(in_flight))
    ready_gradient_id = ready_gradient_list[0]
    worker = in_flight.pop(ready_gradient_id)
    current_weights = ps.apply_gradients.remote(*[ready_gradient_id])
    in_flight[worker.compute_gradients.remote(current_weights)] = worker
print(f"asynchronous: loss below 0.001: {loss(ray.get(current_weights)) < 1e-3}")
