"""Estimate pi by tasks that report to an actor (Ray's documentation)."""

import math
import random

import ray

ray.init(num_cpus=2)


@ray.remote
class ProgressActor:
    def __init__(self, total_num_samples: int):
        self.total_num_samples = total_num_samples
        self.num_samples_completed_per_task = {}

    def report_progress(self, task_id: int, num_samples_completed: int) -> None:
        self.num_samples_completed_per_task[task_id] = num_samples_completed

    def get_progress(self) -> float:
        return (
            sum(self.num_samples_completed_per_task.values()) / self.total_num_samples
        )


@ray.remote
def sampling_task(num_samples, task_id, progress_actor):
    generator = random.Random(task_id)
    num_inside = 0
    for i in range(num_samples):
        x, y = generator.uniform(-1, 1), generator.uniform(-1, 1)
        if math.hypot(x, y) <= 1:
            num_inside += 1
        if (i + 1) % 1000 == 0:
            progress_actor.report_progress.remote(task_id, i + 1)
    ray.get(progress_actor.report_progress.remote(task_id, num_samples))
    return num_inside


NUM_SAMPLING_TASKS = 4
NUM_SAMPLES_PER_TASK = 5_000
TOTAL_NUM_SAMPLES = NUM_SAMPLING_TASKS * NUM_SAMPLES_PER_TASK

progress_actor = ProgressActor.remote(TOTAL_NUM_SAMPLES)
results = [
    sampling_task.remote(NUM_SAMPLES_PER_TASK, i, progress_actor)
    for i in range(NUM_SAMPLING_TASKS)
]
total_num_inside = sum(ray.get(results))
print(f"progress {ray.get(progress_actor.get_progress.remote()):.0%}")
print(f"pi is about {total_num_inside * 4 / TOTAL_NUM_SAMPLES}")
