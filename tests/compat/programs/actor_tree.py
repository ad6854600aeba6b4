"""Supervisors that start workers (Ray's documentation, "a tree of actors")."""

import ray


@ray.remote(num_cpus=0)
class Trainer:
    def __init__(self, hyperparameter, data):
        self.hyperparameter = hyperparameter
        self.data = data

    def fit(self):
        return self.data * self.hyperparameter


@ray.remote(num_cpus=0)
class Supervisor:
    def __init__(self, hyperparameter, data):
        self.trainers = [Trainer.remote(hyperparameter, d) for d in data]

    def fit(self):
        return ray.get([trainer.fit.remote() for trainer in self.trainers])


data = [1, 2, 3]
supervisor1 = Supervisor.remote(1, data)
supervisor2 = Supervisor.remote(2, data)
print(ray.get(supervisor1.fit.remote()))
print(ray.get(supervisor2.fit.remote()))
del supervisor1
print(ray.get(supervisor2.fit.remote()))
