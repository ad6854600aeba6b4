"""What ray.exceptions a program catches."""

import os

import ray
from ray.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)


class MyError(Exception):
    pass


@ray.remote
def fails(kind):
    raise kind("no luck")


for kind in (ValueError, MyError):
    try:
        ray.get(fails.remote(kind))
    except kind as error:
        print(
            kind.__name__, isinstance(error, RayTaskError), isinstance(error, RayError)
        )


@ray.remote
def passes_on(value):
    return value


try:
    ray.get(passes_on.remote(fails.remote(KeyError)))
except RayTaskError as error:
    print("passed on", isinstance(error.cause, KeyError))


@ray.remote
class Counter:
    def __init__(self):
        self.count = 0

    def up(self):
        self.count += 1
        return self.count

    def break_down(self):
        raise ZeroDivisionError

    def die(self):
        os._exit(1)

    def sleep(self):
        import time

        time.sleep(60)


counter = Counter.remote()
try:
    ray.get(counter.break_down.remote())
except ZeroDivisionError:
    print("the actor lives:", ray.get(counter.up.remote()))
try:
    ray.get(counter.sleep.remote(), timeout=0.1)
except GetTimeoutError as error:
    print("timeout", isinstance(error, TimeoutError))
ray.kill(counter)
try:
    ray.get(counter.up.remote())
except ActorDiedError as error:
    print("killed", isinstance(error, RayActorError))

crashing = Counter.remote()
try:
    ray.get(crashing.die.remote())
except RayActorError:
    print("died")


@ray.remote(max_retries=0)
def crash():
    os._exit(1)


try:
    ray.get(crash.remote())
except WorkerCrashedError:
    print("crashed")


@ray.remote
class Unborn:
    def __init__(self):
        raise RuntimeError("not today")

    def call(self):
        pass


try:
    ray.get(Unborn.remote().call.remote())
except RayActorError as error:
    print("unborn", "not today" in str(error))

for wrong in (
    lambda: fails(ValueError),
    lambda: ray.put(ray.put(1)),
    lambda: ray.get_actor("nobody"),
    lambda: ray.wait(ray.put(1)),
    lambda: ray.wait([], num_returns=0),
    lambda: fails.options(no_such_option=1),
    lambda: fails.remote(1, 2, 3),
):
    try:
        wrong()
    except Exception as error:
        print(next(c.__name__ for c in (TypeError, ValueError) if isinstance(error, c)))
