"""Random graphs on `embedded`, processes killed at random, checked against `inline`.

    python tests/soak/soak.py --seconds 600 --seed 7 --stops

`--stops`: processes of the session, the driver among them, are also stopped for a
while at random, and killed while they are stopped.

Graph number n of seed s is always the same program; when a kill strikes is not. After
each graph the store, the processes and the supervisor's descriptors must be back where
they began; after each session, everything. A failure ends the run, with the stacks of
all processes if it is a hang, and with the command that repeats the graph.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import contextlib
import faulthandler
import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import graphs

import skate
import skate.debug
from skate import _runtime

GRAPHS_A_SESSION = 12
HANG_S = 120.0  # a graph takes a second or so, more where others use the machine
SETTLE_S = 30.0
NUM_CPUS = 3
# A forced cancel ends a worker, which may own what an earlier task there has promised.
# It depends on the moment, so a graph that does so is run again until it goes well.
RUNS_IF_FORCED = 30
OPTIONS = ("--stops",)


class SoakError(AssertionError):
    """What a graph did wrong."""


@dataclass
class Report:
    graphs: int = 0
    sessions: int = 0
    kills: int = 0
    stops: int = 0
    repeats: int = 0  # graphs computed again because a kill took a value's owner
    sizes: list[int] = field(default_factory=list)  # tasks and calls, by graph
    seconds: float = 0.0

    def __str__(self) -> str:
        sizes = sorted(self.sizes) or [0]
        return (
            f"{self.graphs} graphs in {self.sessions} sessions, {self.seconds:.0f} s; "
            f"{sum(sizes)} tasks and calls ({sizes[0]} to {sizes[-1]} a graph, median "
            f"{sizes[len(sizes) // 2]}); {self.kills} processes killed, "
            f"{self.stops} stopped for a while; "
            f"{self.repeats} graphs repeated because the owner of a value was killed"
        )


# Processes ---------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, (thread / "children").read_text().split())
    return found


def supervisor() -> int:
    """The child of ours that has the workers below it."""
    return max(children(os.getpid()), key=lambda pid: len(children(pid)))


def workers() -> list[int]:
    """Pool workers, leased ones and actors: they lead sessions of their own."""
    found = []
    for child in children(os.getpid()):
        for pid in children(child):
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == pid:
                    found.append(pid)
    return found


def zygotes() -> list[int]:
    """The supervisor's children that are no workers."""
    below = [pid for child in children(os.getpid()) for pid in children(child)]
    return [pid for pid in below if pid not in workers()]


def open_files(pid: int) -> list[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(link).split("[")[0])
    return found


def descriptors(pid: int) -> int:
    return len(open_files(pid))


class Stopped:
    """Processes that this one has stopped. When it ends, however, all go on."""

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._lock = threading.RLock()
        self._over = False

    def end_well(self) -> None:
        """Let all go on at the end of this process, and end at the usual signals."""
        atexit.register(self.all_go_on)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self.all_go_on()
        sys.exit(128 + number)

    def stop(self, pid: int) -> None:
        with self._lock:
            if not self._over:
                os.kill(pid, signal.SIGSTOP)
                self._pids.add(pid)

    def go_on(self, pid: int) -> None:
        with self._lock:
            self._pids.discard(pid)
            os.kill(pid, signal.SIGCONT)

    def all_go_on(self) -> None:
        """None is stopped from now on."""
        with self._lock:
            self._over = True
            for pid in self._pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            self._pids.clear()


stopped = Stopped()


class Killer(threading.Thread):
    """Kills a random worker or actor every now and then, up to some number.

    What its task had started goes with a worker, so a deep graph would never end under
    endless kills.
    """

    def __init__(self, rng: random.Random, mean_s: float) -> None:
        super().__init__(daemon=True)
        self.kills = 0
        self._limit = rng.choice([3, 10, 30])
        self._rng = rng
        self._mean_s = mean_s
        self._stop_it = threading.Event()

    def run(self) -> None:
        while self.kills < self._limit:
            if self._stop_it.wait(self._rng.expovariate(1 / self._mean_s)):
                return
            if pids := workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._rng.choice(pids), signal.SIGKILL)
                    self.kills += 1

    def stop(self) -> None:
        self._stop_it.set()
        self.join()


class Stopper(threading.Thread):
    """Stops a random process of the session for a while, and then lets it go on.

    Workers and actors are sometimes killed while they are stopped. The driver is
    stopped by a process around this one: see ``stop_the_driver``.
    """

    def __init__(self, rng: random.Random, mean_s: float) -> None:
        super().__init__(daemon=True)
        self.stops = 0
        self.kills = 0
        self._limit = rng.choice([0, 3, 10])  # of kills
        self._rng = rng
        self._mean_s = mean_s
        self._stop_it = threading.Event()

    def run(self) -> None:
        while not self._stop_it.wait(self._rng.expovariate(1 / self._mean_s)):
            killable = workers()
            others = [*children(os.getpid()), *zygotes()]
            pids = killable if self._rng.random() < 0.7 else others
            if not pids:
                continue
            pid = self._rng.choice(pids)
            with contextlib.suppress(ProcessLookupError):
                stopped.stop(pid)
                self.stops += 1
                self._stop_it.wait(min(self._rng.expovariate(5.0), 2.0))
                if (
                    pid in killable
                    and self.kills < self._limit
                    and self._rng.random() < 0.3
                ):
                    self.kills += 1
                    os.kill(pid, signal.SIGKILL)
                stopped.go_on(pid)

    def stop(self) -> None:
        self._stop_it.set()
        self.join()


def stop_the_driver(pid: int, rng: random.Random, ended: threading.Event) -> None:
    """From outside: stop a soak now and then, until ``ended``."""
    while not ended.wait(rng.expovariate(2.0)):
        with contextlib.suppress(ProcessLookupError):
            stopped.stop(pid)
            ended.wait(min(rng.expovariate(5.0), 2.0))
            stopped.go_on(pid)


def show_stacks() -> None:
    """Python stacks of every process of the session, on standard error."""
    print(skate.debug.stacks(), file=sys.stderr, flush=True)
    faulthandler.dump_traceback(all_threads=True)


@contextlib.contextmanager
def must_end(what: str, repeat: str) -> Iterator[None]:
    """Ends the whole process, with everybody's stacks, if the block takes too long."""
    ended = threading.Event()

    def watch() -> None:
        if ended.wait(HANG_S):
            return
        print(f"\nsoak: {what} hangs\n{repeat}", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            show_stacks()
        stopped.all_go_on()
        os._exit(3)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def settles(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SETTLE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# Graphs ------------------------------------------------------------------------------


def graph_seed(seed: int, number: int) -> int:
    return seed * 1_000_003 + number


@dataclass
class Plan:
    """What a graph gives and does on `inline`."""

    result: int
    size: int  # tasks and calls
    forced: int  # cancels that end workers


def plan(seed: int) -> Plan:
    started, forced = graphs.started, graphs.forced
    with skate.init("inline", num_cpus=NUM_CPUS):
        result = graphs.run_graph(seed)
    return Plan(result, graphs.started - started, graphs.forced - forced)


@skate.remote
class Gate:
    async def wait(self) -> None:
        await asyncio.sleep(3)


@skate.remote(max_retries=0)
def what_is_held(gate: Any) -> list[str]:
    """In a worker: its objects, and why those that lack a value do."""
    skate.get(gate.wait.remote())  # so that each call has a worker of its own
    node = _runtime.current().node
    found = [f"worker {node.index}, pid {os.getpid()}:"]
    for each in node.list_objects():
        if each["task_id"] or each["in_store"] or each["is_actor"]:
            why = node.explain(each["object_id"], node.index) if each["task_id"] else ""
            found.append(f"  {each} {why}")
            if why and why["target"]:
                found.append(f"    {node.explain(each['object_id'], why['target'])}")
    return found


def held_by_workers() -> str:
    """What live pool workers hold; for the one who looks for a leak."""
    gate = Gate.remote()
    lines: list[str] = []
    for ref in [what_is_held.remote(gate) for _ in range(24)]:
        with contextlib.suppress(skate.exceptions.SkateError):
            found = skate.get(ref)
            lines += found if len(found) > 1 else []
    return "\n".join(lines)


class Session:
    """One session of the embedded engine, through some graphs."""

    def __init__(self, report: Report, seed: int, stops: bool) -> None:
        self.report = report
        self.seed = seed
        self.stops = stops
        skate.init("embedded", num_cpus=NUM_CPUS)
        graphs.run_graph(1, depth=1)  # exports what graphs are made of
        self.supervisor = supervisor()
        assert settles(lambda: self._held()["objects"] == 0)

    def _held(self) -> dict[str, int]:
        gc.collect()
        return _runtime.current().statistics()

    def _blocks(self) -> str:
        """Every block in use that is too large for code, and who should free it."""
        return "\n".join(
            str(block)
            for block in _runtime.current().node.list_blocks()
            if block["size"] > 10_000
        )

    def run(self, number: int, wanted: Plan) -> None:
        seed = graph_seed(self.seed, number)
        repeat = f"repeat: python tests/soak/soak.py --seed {self.seed} --only {number}"
        repeat += "".join(f" {option}" for option in sys.argv[1:] if option in OPTIONS)
        rng = random.Random(seed)
        mean_s = rng.choice([None, 1.0, 0.3, 0.1, 0.03])
        killer = Killer(rng, mean_s) if mean_s is not None else None
        stopper = None
        if self.stops:
            stopper = Stopper(random.Random(seed), rng.choice([1.0, 0.3, 0.1, 0.03]))
        with must_end(f"graph {number} of seed {self.seed}", repeat):
            disturbers = [each for each in (killer, stopper) if each is not None]
            for each in disturbers:
                each.start()
            try:
                result = self._run_until_no_owner_dies(seed, disturbers, wanted.forced)
            except BaseException as error:
                raise SoakError(f"a graph failed: {error!r}\n{repeat}") from error
            finally:
                for each in disturbers:
                    each.stop()
                    self.report.kills += each.kills
                if stopper is not None:
                    self.report.stops += stopper.stops
            if result != wanted.result:
                raise SoakError(
                    f"a wrong result: {result:#x}, and on inline "
                    f"{wanted.result:#x}\n{repeat}"
                )
            self._check_nothing_is_left(repeat)
        self.report.graphs += 1

    def _run_until_no_owner_dies(
        self, seed: int, disturbers: list[Killer | Stopper], forced: int
    ) -> int:
        for repeats in itertools.count(1):
            try:
                return graphs.run_graph(seed)
            except graphs.KILLED:
                # Each kill can spoil one run.
                excused = sum(each.kills for each in disturbers)
                if repeats > excused + (RUNS_IF_FORCED if forced else 0):
                    raise
                self.report.repeats += 1
        raise AssertionError("not reached")

    def _check_nothing_is_left(self, repeat: str) -> None:
        # Functions and classes stay in the store; closures go with their last task.
        store = 200_000

        def clean() -> bool:
            held = self._held()
            return held["objects"] == 0 and held["store_bytes"] <= store

        if not settles(clean):
            raise SoakError(
                f"the store still holds {self._held()}\n{self._blocks()}\n"
                f"{held_by_workers()}\n{repeat}"
            )

        # A live worker costs the supervisor five: memory, socket, pidfd, two pipes.
        def few() -> bool:
            return descriptors(self.supervisor) <= 25 + 5 * len(workers())

        if not settles(few):
            kinds = Counter(open_files(self.supervisor))
            raise SoakError(
                f"the supervisor has {descriptors(self.supervisor)} descriptors open "
                f"for {len(workers())} workers: {kinds}\n{repeat}"
            )

    def end(self) -> None:
        skate.shutdown()
        self.report.sessions += 1


def soak(
    seconds: float, seed: int, only: int | None = None, stops: bool = False
) -> Report:
    """Run graphs for some time, or one of them over and over."""
    report = Report()
    began = time.monotonic()
    number = 0
    open_before = descriptors(os.getpid())
    while time.monotonic() - began < seconds:
        numbers = [
            number + i if only is None else only for i in range(GRAPHS_A_SESSION)
        ]
        number += GRAPHS_A_SESSION
        plans = []
        for each in numbers if only is None else numbers[:1]:
            with must_end(f"graph {each} on inline", f"--seed {seed} --only {each}"):
                plans.append(plan(graph_seed(seed, each)))
        if only is not None:
            plans *= GRAPHS_A_SESSION
        session = Session(report, seed, stops)
        try:
            for each, wanted in zip(numbers, plans, strict=True):
                session.run(each, wanted)
                report.sizes.append(wanted.size)
                if time.monotonic() - began > seconds:
                    break
        finally:
            session.end()
        if not settles(lambda: not children(os.getpid())):
            raise SoakError(f"processes are left: {children(os.getpid())}")
        if not settles(lambda: descriptors(os.getpid()) <= open_before):
            raise SoakError("descriptors are left open in the driver")
        report.seconds = time.monotonic() - began
        print(f"soak: seed {seed}: {report}", flush=True)
    return report


def under_stops() -> int:
    """Run this program once more, as a process that is stopped now and then."""
    ended = threading.Event()
    rng = random.Random()
    command = [sys.executable, __file__, *sys.argv[1:], "--stopped-from-outside"]
    with subprocess.Popen(command) as driver:
        arguments = (driver.pid, rng, ended)
        thread = threading.Thread(target=stop_the_driver, args=arguments)
        thread.start()
        try:
            return driver.wait()
        finally:
            driver.terminate()  # if this one was told to end
            ended.set()
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    parser.add_argument("--only", type=int, help="the number of one graph")
    parser.add_argument("--stops", action="store_true", help="stop processes, too")
    parser.add_argument(
        "--stopped-from-outside", action="store_true", help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    stopped.end_well()
    if arguments.stops and not arguments.stopped_from_outside:
        sys.exit(under_stops())
    faulthandler.enable()
    soak(arguments.seconds, arguments.seed, arguments.only, arguments.stops)


if __name__ == "__main__":
    main()
