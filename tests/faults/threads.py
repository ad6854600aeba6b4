"""Several threads of one driver use everything at once, for some seconds.

    python tests/faults/threads.py 5

Run as it is, and by ``make test-tsan`` on a core built with ThreadSanitizer.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import skate
from skate.exceptions import SkateError, TaskCancelledError


@skate.remote
def double(x: Any) -> Any:
    return x * 2


@skate.remote
def stream(n: int) -> Any:
    yield from range(n)


@skate.remote
class Counter:
    n = 0

    def add(self, n: int = 1) -> int:
        self.n += n
        return self.n


class Threads:
    """The actions, one of which each thread takes at a time."""

    def __init__(self) -> None:
        self.shared = [skate.put(i) for i in range(8)]
        self.counter = Counter.remote()
        self.calls = 0

    def tasks(self, rng: random.Random) -> None:
        n = rng.randint(1, 20)
        assert skate.get([double.remote(i) for i in range(n)]) == [
            2 * i for i in range(n)
        ]

    def large(self, rng: random.Random) -> None:
        value = rng.randrange(100)
        ref = double.remote(np.full(rng.choice([100, 5000, 300_000]), value))
        assert (skate.get(ref) == 2 * value).all()

    def refs_that_others_replace(self, rng: random.Random) -> None:
        chosen = rng.sample(self.shared, 4)
        assert all(isinstance(value, int) for value in skate.get(chosen))
        self.shared[rng.randrange(8)] = skate.put(rng.randrange(100))
        self.shared[rng.randrange(8)] = double.remote(rng.randrange(100))

    def wait(self, rng: random.Random) -> None:
        refs = [double.remote(i) for i in range(8)]
        while refs:
            ready, refs = skate.wait(refs, timeout=rng.choice([None, 0, 0.001]))
            skate.get(ready)

    def completed(self, rng: random.Random) -> None:
        refs = [double.remote(i) for i in range(rng.randint(1, 8))]
        assert len([skate.get(ref) for ref in skate.as_completed(refs)]) == len(refs)

    def actor(self, rng: random.Random) -> None:
        n = rng.randint(1, 5)
        skate.get([self.counter.add.remote() for _ in range(n)])

    def own_actor(self, rng: random.Random) -> None:
        actor = Counter.remote()
        assert skate.get(actor.add.remote(2)) == 2
        if rng.random() < 0.5:
            skate.kill(actor)

    def futures(self, rng: random.Random) -> None:
        future = double.remote(rng.randrange(9)).future()
        assert future.result(timeout=60) in range(0, 18, 2)

    def cancelled_futures(self, rng: random.Random) -> None:
        ref = double.remote(1)
        polls = [ref.future() for _ in range(rng.randint(1, 5))]
        kept = rng.choice(polls)
        assert all(poll is kept or poll.cancel() or poll.done() for poll in polls)
        assert kept.result(timeout=60) == 2

    def streams(self, rng: random.Random) -> None:
        n = rng.randint(0, 6)
        refs = list(stream.options(num_returns="streaming").remote(n))
        assert skate.get(refs) == list(range(n))

    def cancels(self, rng: random.Random) -> None:
        ref = double.remote(1)
        skate.cancel(ref)
        try:
            assert skate.get(ref) == 2
        except TaskCancelledError:
            pass

    def look(self, rng: random.Random) -> None:
        skate.summary()
        skate.why(double.remote(1))


def use(threads: Threads, seed: int, end: float, failed: list[BaseException]) -> None:
    rng = random.Random(seed)
    actions: list[Callable[[random.Random], None]] = [
        threads.tasks, threads.large, threads.refs_that_others_replace, threads.wait,
        threads.completed, threads.actor, threads.own_actor, threads.futures,
        threads.cancelled_futures, threads.streams, threads.cancels, threads.look,
    ]  # fmt: skip
    try:
        while time.monotonic() < end and not failed:
            rng.choice(actions)(rng)
            threads.calls += 1
    except BaseException as error:
        failed.append(error)


def main(seconds: float) -> int:
    failed: list[BaseException] = []
    with skate.init("embedded", num_cpus=2):
        threads = Threads()
        end = time.monotonic() + seconds
        running = [
            threading.Thread(target=use, args=(threads, seed, end, failed))
            for seed in range(6)
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        for error in failed:
            print(type(error).__name__, error, file=sys.stderr)
            if isinstance(error, SkateError):
                print("the engine failed", file=sys.stderr)
        print(threads.calls, "actions")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
