"""Random dynamic graphs of tasks and actors whose result follows from their seed.

Every task draws what it does from its own seed, never from time or from what others do,
so a graph gives the same result on every engine, and however often its tasks run. It is
folded into one number: a value lost, repeated, swapped or torn anywhere changes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np

import skate
from skate.exceptions import (
    ActorDiedError,
    ActorError,
    ObjectLostError,
    TaskCancelledError,
)

# A kill can cause these: then what failed is computed again. Nothing else is excused.
KILLED = (ActorError, ObjectLostError)

_MASK = (1 << 64) - 1
_REMEMBERED = 1_000_003

# In this process; on `inline` that is all of them.
started = 0  # tasks and calls
forced = 0  # cancels that end the worker of a task


class Planned(Exception):
    """What tasks of a graph raise on purpose."""

    value: Any = None


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


def planned(rng: random.Random, seed: int) -> Planned:
    """Half of these errors hold a value of any size, which others then share."""
    error = Planned(f"{seed:08x}")
    if rng.random() < 0.5:
        error.value = make_value(rng)
    return error


@skate.remote(max_retries=-1)
def node(seed: int, depth: int, *inputs: Any, **more: Any) -> Any:
    """One task: looks at its inputs, does random things, returns a random thing."""
    rng = random.Random(seed)
    total, refs = work(rng, depth, [*inputs, *more.values()])
    if rng.random() < 0.06:
        raise planned(rng, seed)
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
        raise planned(rng, seed)
    return [fold(seed, list(inputs)), make_value(rng)]


@skate.remote(max_retries=-1)
def items(seed: int, depth: int) -> Iterator[Any]:
    """A stream: values, refs, tasks under way; some end early, with an error."""
    global started
    started += 1
    yield from _items(random.Random(seed), depth)


def _items(rng: random.Random, depth: int) -> Iterator[Any]:
    for i in range(rng.randint(0, 8)):
        match rng.randrange(6):
            case 0:
                yield [skate.put(make_value(rng)), i]
            case 1:
                yield [leaf.remote(rng.getrandbits(32)), i]
            case 2 if depth > 0:
                yield [node.remote(rng.getrandbits(32), depth - 1)]
            case _:
                yield make_value(rng)
        if rng.random() < 0.04:
            raise Planned(f"item {i}")


def read_stream(
    rng: random.Random, depth: int, refs: list[skate.ObjectRef[Any]]
) -> int:
    """Read some or all of a stream, at once or later; what is not read is dropped."""
    task = items
    if rng.random() < 0.5:
        task = items.options(_generator_backpressure_num_objects=rng.choice([1, 2, 5]))
    stream = task.remote(rng.getrandbits(32), depth - 1)
    total = fold(7, None)
    limit = rng.choice([0, 1, 3, 100, 100])
    keeps = rng.random() < 0.3
    for item in stream:
        if limit == 0:
            break
        limit -= 1
        if keeps:
            refs.append(item)
        else:
            total = fold(total, item)
    return total


@skate.remote
class Never:
    async def wait(self) -> None:
        await asyncio.Event().wait()


@skate.remote(max_retries=-1, num_cpus=0)
def hang(never: Any) -> None:
    """Only cancelling it ends it."""
    skate.get(never.wait.remote())
    raise AssertionError("what nobody ends has ended")


def cancel_some(rng: random.Random, depth: int) -> int:
    """Cancel what runs, what waits, a whole tree. What had ended before is excused."""
    global forced
    match rng.randrange(4):
        case 0:  # a tree, at whatever moment; its result may be there already
            tree = node.remote(rng.getrandbits(32), max(depth - 1, 0))
            if rng.random() < 0.5:
                skate.wait([leaf.remote(rng.getrandbits(32))])
            force = rng.random() < 0.3
            forced += force
            skate.cancel(tree, force=force)
            with contextlib.suppress(Planned, TaskCancelledError, *KILLED):
                skate.get(tree)
        case 1:  # a stream, in the middle
            stream = items.remote(rng.getrandbits(32), max(depth - 1, 0))
            with contextlib.suppress(Planned, TaskCancelledError, *KILLED):
                for i, item in enumerate(stream):
                    skate.get(item)
                    if i == 1:
                        skate.cancel(stream)
        case 2:  # a call of an asynchronous actor, which then goes on
            actor = AsyncChain.remote()
            seed = rng.getrandbits(20)
            call = actor.add.remote([leaf.remote(seed)], seed)
            skate.cancel(call)
            with contextlib.suppress(TaskCancelledError, *KILLED):
                skate.get(call)
            with contextlib.suppress(*KILLED):
                if skate.get(actor.add.remote([], seed)) != seed:
                    raise AssertionError("an actor ends with a cancelled call")
        case _:  # what would never end by itself, and what waits for that
            never = Never.remote()
            first = hang.remote(never)
            second = leaf.remote(rng.getrandbits(32), first)
            for ref in (first, second) if rng.random() < 0.5 else (second, first):
                skate.cancel(ref)
                with contextlib.suppress(TaskCancelledError, *KILLED):
                    skate.get(ref)
                    raise AssertionError("a cancelled task has a value")
            skate.kill(never)
    return fold(8, None)


@skate.remote(max_restarts=-1, max_task_retries=-1)
class Steady:
    """Answers the same after each of its restarts, and sees to the order of calls."""

    def __init__(self, start: Any) -> None:
        self.start = fold(9, start)
        self.last = -1

    def add(self, number: int, value: Any) -> int:
        global started
        started += 1
        if number <= self.last:
            raise AssertionError(f"call {number} comes after call {self.last}")
        self.last = number
        return fold(self.start, value)

    def look(self, value: Any) -> int:
        return fold(self.start, value)

    def items(self, seed: int) -> Iterator[Any]:
        rng = random.Random(seed)  # no refs: what it owned would go with a restart
        for _ in range(rng.randint(0, 6)):
            yield make_value(rng)


@skate.remote(max_retries=-1)
def ask(actor: Any, seed: int) -> int:
    """Calls an actor that another process has made."""
    global started
    started += 1
    return fold(seed, [actor.look.remote(seed), actor.look.remote(seed + 1)])


def _restart(rng: random.Random, refs: list[Any]) -> int:
    actor = Steady.remote(
        wrap(rng, refs) if rng.random() < 0.5 else rng.getrandbits(20)
    )
    results: list[Any] = []
    for number in range(rng.randint(2, 12)):
        match rng.randrange(8):
            case 0 | 1:
                skate.kill(actor, no_restart=False)
            case 2:
                results.append(ask.remote(actor, rng.getrandbits(20)))
            case 3:
                results += list(actor.items.remote(rng.getrandbits(32)))
            case _:
                value = make_value(rng, large=rng.random() < 0.2)
                results.append(actor.add.remote(number, value))
    if rng.random() < 0.3:
        del actor
    return fold(6, results)


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

    async def items(self, seed: int) -> AsyncIterator[Any]:
        for item in _items(random.Random(seed), 0):
            await asyncio.sleep(0)
            yield item


def use_actor(rng: random.Random, refs: list[Any]) -> int:
    """A short life of an actor; lived again, with the same seed, if it is killed."""
    seed = rng.getrandbits(32)
    chosen = rng.sample(refs, min(len(refs), 3))
    live = _restart if rng.random() < 0.3 else _live
    for _ in range(10):
        with contextlib.suppress(ActorDiedError):
            return live(random.Random(seed), chosen)
    return live(random.Random(seed), chosen)


def _live(rng: random.Random, refs: list[Any]) -> int:
    if rng.random() < 0.3:
        actor = AsyncChain.remote()
        calls = [actor.add.remote(refs, rng.getrandbits(20)) for _ in range(4)]
        if rng.random() < 0.5:
            calls += list(actor.items.remote(rng.getrandbits(32)))
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
        elif roll < 0.94:
            total = fold(total, use_actor(rng, refs))
        elif roll < 0.96 and depth > 0:
            total = fold(total, read_stream(rng, depth, refs))
        elif roll < 0.98:
            total = fold(total, cancel_some(rng, depth))
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
