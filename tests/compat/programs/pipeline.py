"""Limit pending tasks with ray.wait; stages that overlap (Ray's documentation)."""

import ray

ray.init(num_cpus=2)


@ray.remote
def load(i):
    return list(range(i))


@ray.remote
def square(values):
    return [v * v for v in values]


@ray.remote
def total(values):
    return sum(values)


MAX_NUM_PENDING_TASKS = 4
result_refs = []
results = []
for i in range(20):
    if len(result_refs) > MAX_NUM_PENDING_TASKS:
        ready_refs, result_refs = ray.wait(result_refs, num_returns=1)
        results += ray.get(ready_refs)
    result_refs.append(total.remote(square.remote(load.remote(i))))
results += ray.get(result_refs)
print(sorted(results))

big = ray.put(list(range(1000)))


@ray.remote
def pick(refs, i):
    return ray.get(refs[0])[i]


print(ray.get([pick.remote([big], i) for i in (0, 10, 999)]))

slow, fast = total.remote(square.remote(load.remote(50_000))), total.remote([1])
ready, not_ready = ray.wait([slow, fast], num_returns=2, timeout=60)
print(len(ready), len(not_ready), ray.get(fast))


@ray.remote
def fibonacci(n):
    if n < 2:
        return n
    return sum(ray.get([fibonacci.remote(n - 1), fibonacci.remote(n - 2)]))


print(ray.get(fibonacci.remote(4)))
