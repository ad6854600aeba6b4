"""Producers and consumers around ray.util.queue.Queue, and the other utilities."""

import ray
from ray.util import ActorPool
from ray.util.queue import Empty, Full, Queue

ray.init(num_cpus=2)
queue = Queue(maxsize=10)


@ray.remote(num_cpus=0)
def consumer(number, queue):
    taken = []
    while True:
        item = queue.get(block=True, timeout=60)
        if item is None:
            return taken
        taken.append(item)


consumers = [consumer.remote(i, queue) for i in range(2)]
for i in range(30):
    queue.put(i)
for _ in consumers:
    queue.put(None)
print(sorted(item for taken in ray.get(consumers) for item in taken))
try:
    queue.get_nowait()
except Empty:
    print("empty")
queue.put_nowait_batch(list(range(10)))
try:
    queue.put(1, timeout=0.01)
except Full:
    print("full", queue.qsize())
print(queue.get_nowait_batch(3))
queue.shutdown()


@ray.remote
class Actor:
    def double(self, v):
        return 2 * v


pool = ActorPool([Actor.remote(), Actor.remote()])
print(list(pool.map(lambda a, v: a.double.remote(v), [1, 2, 3, 4])))
print(sorted(pool.map_unordered(lambda a, v: a.double.remote(v), [1, 2, 3, 4])))


@ray.remote
def identity(x):
    return x


print(sorted(ray.util.as_completed([identity.remote(i) for i in range(5)])))
print(sorted(ray.util.map_unordered(identity, range(5), backpressure_size=2)))
