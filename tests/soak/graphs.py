"""Random dynamic graphs of tasks and actors whose result follows from their seed.

Every task draws what it does from its own seed, never from time or from what others do,
so a graph gives the same result on every engine, and however often its tasks run. It is
folded into one number: a value lost, repeated, swapped or torn anywhere changes it.
"""

from __future__ import annotations

import contextlib
import random
import zlib
from typing import Any

import numpy as np

import skate
from skate.exceptions import ActorDiedError, ActorError, ObjectLostError

# A kill can cause these: then what failed is computed again. Nothing else is excused.
KILLED = (ActorError, ObjectLostError)

_MASK = (1 << 64) - 1
_REMEMBERED = 1_000_003

started = 0  # tasks and calls, in this process: on `inline` that is all of them


class Planned(Exception):
    """What tasks of a graph raise on purpose."""


class Box:
    """A container that only pickle can see into."""

    def __init__(self, content: Any) -> None:
        self.content = content


def fold(total: int, value: Any) -> int:
    """Mix ``value`` into ``total``; refs inside it are fetched."""
    return (total * _REMEMBERED + _digest(value)) & _MASK


def _digest(value: Any) -> int:
    match value:
        case skate.ObjectRef():
            return outcome(value)
        case np.ndarray():
            return zlib.crc32(value.tobytes()) + value.size
        case Box(content=content):
            return fold(11, content)
        case dict():
            total = 12
            for key in sorted(value):
                total = fold(fold(total, key), value[key])
            return total
        case list() | tuple():
            total = 13 + len(value)
            for item in value:
                total = fold(total, item)
            return total
        case bytes():
            return zlib.crc32(value)
        case str():
            return zlib.crc32(value.encode()) + 1
        case int():
            return value & _MASK
        case None:
            return 17
    raise TypeError(f"a graph holds no {type(value).__name__}: {value!r}")


def outcome(ref: skate.ObjectRef[Any]) -> int:
    """The digest of a ref's value, or of the error that was planned."""
    try:
        return fold(1, skate.get(ref))
    except Planned as error:
        return fold(2, str(error.args[0]))


def make_value(rng: random.Random, large: bool = True) -> Any:
    size = rng.choice([8, 300, 3_000, 30_000, 300_000] if large else [8, 300])
    match rng.randrange(5):
        case 0:
            return rng.getrandbits(60)
        case 1:
            return rng.randbytes(size)
        case 2:
            return np.arange(size // 4, dtype=np.int32) * rng.randrange(1, 9)
        case 3:
            return {"a": [rng.random().hex(), None], "b": (rng.randbytes(8), size)}
        case _:
            return Box([np.full(size // 8, float(rng.randrange(100))), "text" * 10])


def wrap(rng: random.Random, refs: list[Any]) -> Any:
    """Refs inside a container: they stay refs."""
    match rng.randrange(4):
        case 0:
            return list(refs)
        case 1:
            return {"refs": tuple(refs), "n": len(refs)}
        case 2:
            return Box(list(refs))
        case _:
            return [[ref] for ref in refs]


@skate.remote(max_retries=-1)
def node(seed: int, depth: int, *inputs: Any, **more: Any) -> Any:
    """One task: looks at its inputs, does random things, returns a random thing."""
    rng = random.Random(seed)
    total, refs = work(rng, depth, [*inputs, *more.values()])
    if rng.random() < 0.06:
        raise Planned(f"{seed:08x}")
    match rng.randrange(4):
        case 0:
            return total
        case 1:
            return [total, make_value(rng)]
        case 2:
            array = skate.empty(rng.choice([10, 1_000, 50_000]), np.int64)
            array[:] = total >> 1
            return array
        case _:
            # What leaves with the result is handed over only when it is done.
            given = rng.sample(refs, min(len(refs), 3))
            skate.wait(given, num_returns=len(given))
            return [total, wrap(rng, given)]


@skate.remote(max_retries=-1, num_returns=2)
def pair(seed: int, *inputs: Any) -> tuple[Any, Any]:
    global started
    started += 1
    rng = random.Random(seed)
    return fold(seed, list(inputs)), make_value(rng)


@skate.remote(max_retries=-1)
def leaf(seed: int, *inputs: Any) -> Any:
    global started
    started += 1
    rng = random.Random(seed)
    if rng.random() < 0.1:
        raise Planned(f"{seed:08x}")
    return [fold(seed, list(inputs)), make_value(rng)]


@skate.remote
class Chain:
    """Folds what it is given, in order: a call lost, repeated or overtaken shows."""

    def __init__(self, start: Any) -> None:
        self.total = fold(5, start)

    def add(self, value: Any) -> int:
        global started
        started += 1
        self.total = fold(self.total, value)
        return self.total

    def fail(self, word: str) -> None:
        self.total = fold(self.total, word)
        raise Planned(word)

    def spawn(self, seed: int) -> Any:
        return [leaf.remote(seed), skate.put(self.total)]


@skate.remote
class AsyncChain:
    """The same, whose calls wait for refs on an event loop."""

    def __init__(self) -> None:
        self.calls = 0

    async def add(self, boxed: list[skate.ObjectRef[Any]], seed: int) -> int:
        global started
        started += 1
        self.calls += 1
        total = seed
        for ref in boxed:
            try:
                total = fold(total, await ref)
            except Planned as error:
                total = fold(total, str(error.args[0]))
        return total


def use_actor(rng: random.Random, refs: list[Any]) -> int:
    """A short life of an actor; lived again, with the same seed, if it is killed."""
    seed = rng.getrandbits(32)
    chosen = rng.sample(refs, min(len(refs), 3))
    for _ in range(10):
        with contextlib.suppress(ActorDiedError):
            return _live(random.Random(seed), chosen)
    return _live(random.Random(seed), chosen)


def _live(rng: random.Random, refs: list[Any]) -> int:
    if rng.random() < 0.3:
        actor = AsyncChain.remote()
        calls = [actor.add.remote(refs, rng.getrandbits(20)) for _ in range(4)]
        return fold(3, calls)
    chain = Chain.remote(wrap(rng, refs) if rng.random() < 0.5 else rng.getrandbits(20))
    results = []
    spawned = False
    for i in range(rng.randint(1, 12)):
        if rng.random() < 0.1:
            results.append(chain.fail.remote(f"{i}"))
        elif rng.random() < 0.1:
            results.append(chain.spawn.remote(rng.getrandbits(20)))
            spawned = True  # what the actor owns ends with it, as in Ray
        elif refs and rng.random() < 0.3:
            results.append(chain.add.remote(rng.choice(refs)))
        else:
            results.append(chain.add.remote(make_value(rng, large=rng.random() < 0.2)))
    if not spawned and rng.random() < 0.3:
        del chain  # the last handle goes while calls are under way
    return fold(4, results)


def work(
    rng: random.Random, depth: int, inputs: list[Any]
) -> tuple[int, list[skate.ObjectRef[Any]]]:
    """Random things to do, in a task or in the driver: their digest, and refs made."""
    global started
    started += 1
    total = fold(depth, inputs)
    refs: list[skate.ObjectRef[Any]] = []

    def some(limit: int) -> list[skate.ObjectRef[Any]]:
        return rng.sample(refs, min(len(refs), rng.randint(0, limit)))

    for _ in range(rng.randint(3, 9)):
        roll = rng.random()
        if roll < 0.15:
            refs.append(skate.put(make_value(rng)))
        elif roll < 0.45 and depth > 0:
            task = node
            if rng.random() < 0.1:
                task = node.options(num_cpus=rng.choice([0, 2]))
            arguments: list[Any] = [*some(2), make_value(rng, large=rng.random() < 0.3)]
            named = {"boxed": wrap(rng, some(3))} if rng.random() < 0.5 else {}
            refs.append(
                task.remote(rng.getrandbits(32), depth - 1, *arguments, **named)
            )
        elif roll < 0.60:
            refs.append(leaf.remote(rng.getrandbits(32), *some(2), wrap(rng, some(2))))
        elif roll < 0.66:
            refs.extend(pair.remote(rng.getrandbits(32), *some(1)))
        elif roll < 0.76:
            total = fold(total, some(3))
        elif roll < 0.82 and refs:
            ready, rest = skate.wait(refs, num_returns=rng.randint(1, len(refs)))
            total = fold(total, len(ready) + len(rest))
        elif roll < 0.86:
            chosen = some(4)
            for ref in skate.as_completed(chosen):
                total = (total + outcome(ref)) & _MASK  # in whatever order
        elif roll < 0.90:
            captured = skate.put(rng.randbytes(100))

            @skate.remote(max_retries=-1)
            def closure(
                x: int, captured: skate.ObjectRef[bytes] = captured
            ) -> tuple[int, bytes]:
                return x, skate.get(captured)

            refs.append(closure.remote(rng.getrandbits(10)))
        elif roll < 0.97:
            total = fold(total, use_actor(rng, refs))
        elif refs:
            refs.pop(rng.randrange(len(refs)))  # nobody wants it any more
    if rng.random() < 0.7:
        total = fold(total, refs)
    return total, refs


def run_graph(seed: int, depth: int | None = None) -> int:
    """One graph, from the driver: its result as a number."""
    rng = random.Random(seed)
    total, refs = work(rng, rng.randint(2, 5) if depth is None else depth, [seed])
    return fold(total, refs)
