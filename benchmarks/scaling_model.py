"""At how many machines does what become the limit, and what to configure then?

A discrete-event model of three workloads on a Ray cluster. Workers go round and round:
they compute on their own core, then ask the stations that all share (the driver, the
served policy, the parameter server's shards, a machine's network). What the driver
spends on a call is measured (`ray_translation.json`), and so is the policy (here, by
`--measure`); sizes, times of steps and the network are the assumptions in `World`.

    python -m benchmarks.scaling_model            # writes results/scaling.{json,md}
"""

from __future__ import annotations

import argparse
import heapq
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .harness import RESULTS

MACHINES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
ENOUGH = 0.9  # of what as many machines would do if nothing were shared


@dataclass(frozen=True)
class Costs:
    """Seconds, measured on one core."""

    driver_task: float  # what the driver's process spends on a task and its result
    driver_call: float  # and on a call of an actor; an actor spends as much on it
    policy_batch: float  # a batch of the policy, whatever its size
    policy_state: float  # and for each state in it


@dataclass(frozen=True)
class World:
    """What is assumed, and what a user may configure."""

    cores: int = 16  # of a machine, each with a worker
    network: float = 25e9 / 8  # bytes a second of a machine, each way
    latency: float = 50e-6  # seconds, from machine to machine
    # Simulation: tasks of so many seconds, results of so many bytes.
    task_s: float = 0.1
    result_bytes: float = 20_000
    drivers: int = 1  # actors that each run a part of the simulations
    # Serving: workers step vectors of envs, and ask a policy.
    step_s: float = 2e-3
    envs: int = 1  # in a worker's vector
    state_bytes: float = 400
    replicas: int = 1
    max_batch: int = 256
    # Training: one rank a machine.
    compute_s: float = 0.2
    gradient_bytes: float = 100e6
    shards: int = 1  # of the parameter server, each on a machine of its own
    report_every: int = 1  # steps


class Stage(NamedTuple):
    """A turn at a station, or seconds alone if there is none."""

    station: int | None
    work: float


@dataclass
class Station:
    """A shared resource: some servers, one queue, perhaps batches."""

    name: str
    servers: int = 1
    fixed: float = 0.0  # seconds of a batch, beside the work of those in it
    max_batch: int = 1


class Outcome(NamedTuple):
    """What a run of the model saw."""

    rate: float  # rounds a second, of all workers
    busy: dict[str, float]  # share of the time, of each station


def simulate(
    stations: Sequence[Station],
    routes: Sequence[Sequence[Stage]],
    rounds: int = 4,
) -> Outcome:
    """Let each worker follow its route; measure after the first half of the rounds."""
    queues: list[deque[tuple[int, int]]] = [deque() for _ in stations]
    idle = [station.servers for station in stations]
    busy = [0.0] * len(stations)
    events: list[tuple[float, int, int, tuple[tuple[int, int], ...]]] = []
    counter = 0
    done = 0
    warm_at, warm_done = 0.0, 0
    goal = rounds * len(routes)

    def at(when: float, station: int, who: tuple[tuple[int, int], ...]) -> None:
        nonlocal counter
        counter += 1
        heapq.heappush(events, (when, counter, station, who))

    def begin(now: float, index: int) -> None:
        station, queue = stations[index], queues[index]
        while idle[index] and queue:
            batch = tuple(
                queue.popleft() for _ in range(min(station.max_batch, len(queue)))
            )
            took = station.fixed + sum(routes[w][s].work for w, s in batch)
            idle[index] -= 1
            busy[index] += took
            at(now + took, index, batch)

    def enter(now: float, worker: int, step: int) -> None:
        station, work = routes[worker][step]
        if station is None:
            at(now + work, -1, ((worker, step),))
        else:
            queues[station].append((worker, step))
            begin(now, station)

    for worker, route in enumerate(routes):
        # Not all at once: they would stay in step for ever.
        first = route[0].work * worker / len(routes)
        at(first, -1, ((worker, -1),))
    now = 0.0
    while events and done < goal:
        now, _, index, who = heapq.heappop(events)
        for worker, step in who:
            if step + 1 == len(routes[worker]):
                done += 1
                if done == goal // 2:
                    warm_at, warm_done = now, done
                    busy = [0.0] * len(stations)
                enter(now, worker, 0)
            else:
                enter(now, worker, step + 1)
        if index >= 0:  # once all of them wait again: they make one batch
            idle[index] += 1
            begin(now, index)
    span = now - warm_at
    return Outcome(
        (done - warm_done) / span,
        {
            station.name: min(1.0, used / span / station.servers)
            for station, used in zip(stations, busy, strict=True)
        },
    )


# The workloads ----------------------------------------------------------------------

Workload = Callable[[int, World, Costs], tuple[list[Station], list[list[Stage]]]]


def simulation(
    machines: int, world: World, costs: Costs
) -> tuple[list[Station], list[list[Stage]]]:
    """`sim.run`: tasks on every core; the driver hands out and takes in each."""
    stations = [
        Station("driver", world.drivers),
        Station("network of the driver", world.drivers),
    ]
    route = [
        Stage(None, world.task_s),
        Stage(1, world.result_bytes / world.network),
        Stage(0, costs.driver_task),
    ]
    return stations, [route] * (machines * world.cores)


def serving(
    machines: int, world: World, costs: Costs
) -> tuple[list[Station], list[list[Stage]]]:
    """A worker steps its envs, then asks the policy for actions for all of them."""
    stations = [
        Station(
            "policy",
            world.replicas,
            fixed=costs.policy_batch,
            max_batch=world.max_batch,
        ),
        Station("network of the policy", world.replicas),
    ]
    route = [
        Stage(None, world.step_s * world.envs + 2 * world.latency),
        Stage(1, world.envs * world.state_bytes / world.network),
        Stage(0, costs.driver_call + costs.policy_state * world.envs),
    ]
    return stations, [route] * (machines * world.cores)


def parameter_server(
    machines: int, world: World, costs: Costs
) -> tuple[list[Station], list[list[Stage]]]:
    """Each rank computes, then pushes to and pulls from every shard in turn."""
    shards = [Station(f"shard {i}") for i in range(world.shards)]
    stations = [*shards, Station("driver")]
    part = costs.driver_call + 2 * world.gradient_bytes / world.shards / world.network
    routes = []
    for rank in range(machines):
        turns = [Stage((rank + i) % world.shards, part) for i in range(world.shards)]
        report = Stage(world.shards, costs.driver_call / world.report_every)
        routes.append([Stage(None, world.compute_s), *turns, report])
    return stations, routes


def allreduce(
    machines: int, world: World, costs: Costs
) -> tuple[list[Station], list[list[Stage]]]:
    """Each rank sends and receives the gradient twice, however many there are."""
    share = 2 * (machines - 1) / machines
    ring = share * world.gradient_bytes / world.network
    ring += 2 * (machines - 1) * world.latency
    report = Stage(0, costs.driver_call / world.report_every)
    route = [Stage(None, world.compute_s + ring), report]
    return [Station("driver")], [route] * machines


# The question -----------------------------------------------------------------------


class Row(NamedTuple):
    """One number of machines."""

    machines: int
    rate: float
    efficiency: float  # of what they would do if nothing were shared
    busiest: str
    busy: float


def sweep(
    workload: Workload,
    world: World,
    costs: Costs,
    alone: float,
    machines: Iterable[int] = MACHINES,
) -> list[Row]:
    """The model for growing clusters; ``alone``: seconds of a round by itself."""
    rows = []
    for number in machines:
        stations, routes = workload(number, world, costs)
        outcome = simulate(stations, routes)
        busiest = max(outcome.busy, key=lambda name: outcome.busy[name])
        name = "a shard" if busiest.startswith("shard") else busiest
        efficiency = outcome.rate * alone / len(routes)
        rows.append(Row(number, outcome.rate, efficiency, name, outcome.busy[busiest]))
    return rows


def limit_of(rows: Sequence[Row]) -> Row | None:
    """The first that is short of ``ENOUGH``; None if all are good."""
    return next((row for row in rows if row.efficiency < ENOUGH), None)


@dataclass(frozen=True)
class Scenario:
    """One line of the table."""

    workload: str
    setting: str
    world: World


def scenarios() -> list[Scenario]:
    """Each workload as it comes, and with what moves its limit."""
    plain = World()
    return [
        Scenario("simulation", "tasks of 0.1 s", plain),
        Scenario("simulation", "tasks of 1 s", replace(plain, task_s=1.0)),
        Scenario(
            "simulation",
            "tasks of 1 s, 8 actors that each run a part",
            replace(plain, task_s=1.0, drivers=8),
        ),
        Scenario("simulation", "results of 1 MB", replace(plain, result_bytes=1e6)),
        Scenario("serving", "one env a worker, one replica", plain),
        Scenario("serving", "16 envs a worker", replace(plain, envs=16)),
        Scenario(
            "serving",
            "16 envs a worker, 64 replicas",
            replace(plain, envs=16, replicas=64),
        ),
        Scenario("parameter server", "one shard", plain),
        Scenario("parameter server", "16 shards", replace(plain, shards=16)),
        Scenario("parameter server", "64 shards", replace(plain, shards=64)),
        Scenario("allreduce", "a ring", plain),
        Scenario(
            "allreduce", "a ring, 2 s of work a step", replace(plain, compute_s=2)
        ),
    ]


WORKLOADS: dict[str, Workload] = {
    "simulation": simulation,
    "serving": serving,
    "parameter server": parameter_server,
    "allreduce": allreduce,
}


def alone_s(name: str, world: World) -> float:
    """A round's own seconds, which no other machine can make longer."""
    if name == "simulation":
        return world.task_s
    if name == "serving":
        return world.step_s * world.envs + 2 * world.latency
    return world.compute_s + 2 * world.gradient_bytes / world.network


def measure_policy(hidden: int = 64, inputs: int = 100) -> tuple[float, float]:
    """Seconds of a batch, and of each state in it: a small network in NumPy."""
    rng = np.random.default_rng(0)
    layers = [
        rng.normal(size=shape).astype(np.float32)
        for shape in ((inputs, hidden), (hidden, hidden), (hidden, 4))
    ]

    def evaluate(x: np.ndarray) -> np.ndarray:
        for weights in layers:
            x = np.tanh(x @ weights)
        return x

    def best(number: int) -> float:
        x = rng.normal(size=(number, inputs)).astype(np.float32)
        took = []
        for _ in range(200):
            start = time.perf_counter()
            evaluate(x)
            took.append(time.perf_counter() - start)
        return sorted(took)[len(took) // 2]

    small, large = best(1), best(1024)
    per_state = max(0.0, (large - small) / 1023)
    return small, per_state


def read_costs(results: Path) -> Costs:
    """From what the other benchmark has measured, and the policy here and now."""
    cases = json.loads((results / "ray_translation.json").read_text())["cases"]
    batch, state = measure_policy()
    return Costs(
        driver_task=cases["tasks, 100 in flight"]["skate_driver_cpu_us"] * 1e-6,
        driver_call=cases["an actor's calls, 100 in flight"]["skate_driver_cpu_us"]
        * 1e-6,
        policy_batch=batch,
        policy_state=state,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--measure", action="store_true", help="the costs anew")
    given = parser.parse_args()
    path = given.results / "scaling.json"
    if path.exists() and not given.measure:
        costs = Costs(**json.loads(path.read_text())["costs"])
    else:
        costs = read_costs(given.results)
    lines = ["| workload | setting | good up to | then the limit is | at that size |"]
    lines.append("|---|---|---|---|---|")
    found = []
    for case in scenarios():
        rows = sweep(
            WORKLOADS[case.workload],
            case.world,
            costs,
            alone_s(case.workload, case.world),
        )
        found.append({**asdict(case), "rows": [row._asdict() for row in rows]})
        limit = limit_of(rows)
        good = [row.machines for row in rows if row.efficiency >= ENOUGH]
        most = f"{max(good):,} machines" if good else "not even one"
        if limit is None:
            lines.append(f"| {case.workload} | {case.setting} | {most} | none | |")
            continue
        name = limit.busiest if limit.busy > 0.5 else "the network between ranks"
        lines.append(
            f"| {case.workload} | {case.setting} | {most} | {name} | "
            f"{limit.machines:,} machines: {100 * limit.efficiency:.0f} % |"
        )
        print(lines[-1], flush=True)
    table = "\n".join(lines)
    path.write_text(
        json.dumps({"costs": asdict(costs), "scenarios": found}, indent=1) + "\n"
    )
    path.with_suffix(".md").write_text(
        "# At how many machines does what become the limit?\n\n"
        "`python -m benchmarks.scaling_model`: a model, not a measurement. Good is at "
        f"least {100 * ENOUGH:.0f} % of what the machines would do alone. Costs, in "
        "microseconds: "
        + ", ".join(f"{k} {1e6 * v:.3g}" for k, v in asdict(costs).items())
        + f".\n\n{table}\n"
    )


if __name__ == "__main__":
    main()
