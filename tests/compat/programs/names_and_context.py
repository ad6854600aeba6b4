"""Named actors, namespaces, methods, resources and the runtime context."""

import ray

context = ray.init(num_cpus=2, resources={"simulator": 2}, namespace="games")
print(ray.is_initialized(), ray.cluster_resources()["simulator"])
print("node_id" in context.address_info)


@ray.remote
class Store:
    """Keeps values."""

    def __init__(self, *values, key="default"):
        self.values = list(values)
        self.key = key

    @ray.method(num_returns=2)
    def ends(self):
        return self.values[0], self.values[-1]

    def set(self, **values):
        return sorted(values.items())

    @staticmethod
    def constant():
        return 42

    def where(self):
        context = ray.get_runtime_context()
        return context.namespace, context.get_actor_id() is not None


store = Store.options(name="store", get_if_exists=True).remote(1, 2, 3, key="k")
again = ray.get_actor("store")
print(again == store, ray.get(again.ends.remote()))
print(ray.get(store.set.remote(b=1, a=2)), ray.get(store.constant.remote()))
print(ray.get(store.where.remote()))
same = Store.options(name="store", get_if_exists=True).remote("other")
print(ray.get(same.ends.options(num_returns=1).remote()))
try:
    Store.options(name="store").remote()
except ValueError:
    print("taken")
try:
    ray.get_actor("store", namespace="elsewhere")
except ValueError:
    print("not there")


@ray.remote(resources={"simulator": 1})
def simulate(x):
    return x + 1


print(ray.get([simulate.options(num_cpus=0.5).remote(i) for i in range(4)]))


@ray.remote
def task_id():
    return ray.get_runtime_context().get_task_id()


print(len(set(ray.get([task_id.remote() for _ in range(3)]))))
print(ray.get_runtime_context().get_actor_id())


@ray.remote(num_returns=2)
def two(x, *, y=1):
    return x, y


print(ray.get(two.remote(1)), ray.get(two.options(num_returns=1).remote(2, y=3)))
print(ray.get(ray.remote(lambda: "made by a call").remote()))
ray.shutdown()
print(ray.is_initialized())
