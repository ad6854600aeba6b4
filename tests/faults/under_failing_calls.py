"""A bit of everything, in steps: each ends well or by a named error, and in time.

Run by test_failing_calls.py, with failing_calls.c preloaded. Once the calls no longer
fail, every step must end well. If every worker fails in the call that it begins with,
the session ends and says so; the steps then end well in another session.

Prints one line for each step; the exit status is 0, or 2: a wrong value, 3: something
hangs, 4: an error without a name. What hangs elsewhere than in get is killed by an
alarm, after its stacks: a thread to watch over it could not be made.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import skate
from skate.collective import GroupSpec
from skate.exceptions import EngineDiedError, GetTimeoutError, SkateError
from skate.util import placement_group, remove_placement_group
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy

STEP_S = 25.0  # a step takes some milliseconds
MIB = 1 << 20
WORKERS_FAIL = os.environ.get("SKATE_FAIL_IN") == "worker"


class WrongValueError(AssertionError):
    pass


def check(holds: bool, what: object = "") -> None:
    if not holds:
        raise WrongValueError(what)


def get(ref: Any) -> Any:
    return skate.get(ref, timeout=STEP_S)


@skate.remote
def double(x: Any) -> Any:
    return x * 2


@skate.remote
def tree(depth: int) -> int:
    if depth == 0:
        return 1
    return sum(skate.get([tree.remote(depth - 1) for _ in range(2)]))


@skate.remote
def variables(prefix: str) -> int:
    return sum(name.startswith(prefix) for name in os.environ)


@skate.remote
class Counter:
    n = 0

    def add(self, x: Any = 1) -> int:
        self.n += 1
        return self.n

    def make(self, size: int, value: int) -> np.ndarray:
        return np.full(size, value, np.uint8)

    def allreduce(self, name: str, rank: int) -> float:
        group = GroupSpec(name, 2).join(rank, STEP_S)
        x = np.full(1000, rank + 1.0)
        group.allreduce(x, "sum", timeout=STEP_S)
        group.close()
        return float(x[0])


def tasks() -> None:
    check(get([double.remote(i) for i in range(20)]) == [2 * i for i in range(20)])


def nested_tasks() -> None:
    check(get(tree.remote(3)) == 8)


def actor_calls() -> None:
    actor = Counter.remote()
    check(get([actor.add.remote() for _ in range(20)]) == list(range(1, 21)))
    skate.kill(actor)


def large_values() -> None:
    array = np.arange(MIB, dtype=np.uint8)
    ref = skate.put(array)
    check((get(ref) == array).all())
    check((get(double.remote(ref)) == array * 2).all())
    actor = Counter.remote()
    made = get([actor.make.remote(2 * MIB, i) for i in range(3)])
    check(all((each == i).all() for i, each in enumerate(made)))


def leases() -> None:
    half = double.options(num_cpus=0.5)
    check(get([half.remote(i) for i in range(12)]) == [2 * i for i in range(12)])
    token = double.options(num_cpus=0, resources={"token": 1})
    check(get([token.remote(i) for i in range(4)]) == [2 * i for i in range(4)])


def placement() -> None:
    group = placement_group([{"CPU": 1}])
    check(group.wait(STEP_S), "the group is not ready")
    where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    check(get(double.options(scheduling_strategy=where).remote(4)) == 8)
    remove_placement_group(group)


def collective() -> None:
    ranks = [Counter.options(num_cpus=0).remote() for _ in range(2)]
    name = f"group-{os.urandom(4).hex()}"
    sums = get([rank.allreduce.remote(name, i) for i, rank in enumerate(ranks)])
    check(sums == [3.0, 3.0], sums)


def spill() -> None:
    """More than the store holds."""
    refs = [skate.put(np.full(8 * MIB, i, np.uint8)) for i in range(12)]
    for i, ref in enumerate(refs):
        check((get(ref) == i).all(), i)


def large_message() -> None:
    env = {f"VARIABLE_{i}": f"{i:03}" * 1000 for i in range(100)}
    task = variables.options(runtime_env={"env_vars": env})
    check(get(task.remote("VARIABLE_")) == 100)


STEPS: list[Callable[[], None]] = [
    tasks, nested_tasks, actor_calls, large_values, leases, placement, collective,
    spill, large_message, tasks,
]  # fmt: skip


@contextlib.contextmanager
def end_if_it_hangs() -> Iterator[None]:
    signal.alarm(int(3 * STEP_S))
    try:
        yield
    finally:
        signal.alarm(0)


class NoWorkersError(Exception):
    """The session has ended, as it says it does: none of its workers came up."""


def run(step: Callable[[], None], may_fail: bool) -> None:
    """Run one step, and end this process if it goes as it must not."""
    try:
        with end_if_it_hangs():
            step()
        said = "well"
    except WrongValueError as error:
        print(f"{step.__name__}: WRONG {error}", flush=True)
        os._exit(2)
    except GetTimeoutError:
        print(f"{step.__name__}: HANGS in get", flush=True)
        os._exit(3)
    except (SkateError, MemoryError, OSError) as error:
        said = f"{type(error).__name__}: {str(error)[:300]}"
        no_workers = "workers in a row ended before they could take a task"
        if may_fail and WORKERS_FAIL and no_workers in str(error):
            print(f"{step.__name__}: {said}", flush=True)
            raise NoWorkersError from error
        if not may_fail or (isinstance(error, EngineDiedError)) or not str(error):
            print(f"{step.__name__}: MUST NOT FAIL by {said}", flush=True)
            os._exit(4)
    except BaseException as error:
        print(f"{step.__name__}: WITHOUT A NAME {error!r}", flush=True)
        os._exit(4)
    print(f"{step.__name__}: {said}", flush=True)


def begin() -> None:
    skate.init(
        "embedded",
        num_cpus=2,
        resources={"token": 1},
        object_store_memory=64 * MIB,
        log_to_driver=False,
    )


def main(armed: Path, since: str) -> None:
    faulthandler.register(signal.SIGALRM, chain=True)
    if since == "from the start":
        armed.touch()
    try:
        with end_if_it_hangs():
            begin()
    except (SkateError, MemoryError, OSError) as error:
        print(f"init: {type(error).__name__}: {error}")
        return
    armed.touch()
    try:
        for step in STEPS:
            run(step, may_fail=True)
    except NoWorkersError:
        armed.unlink()
        skate.shutdown()
        begin()
    else:
        armed.unlink()
    for step in STEPS:
        run(step, may_fail=False)
    with end_if_it_hangs():
        skate.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
