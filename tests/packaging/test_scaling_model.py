"""The model of large clusters, where its answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scaling_model import (
    Costs,
    Stage,
    Station,
    World,
    allreduce,
    alone_s,
    limit_of,
    simulate,
    simulation,
    sweep,
)

COSTS = Costs(driver_task=1e-3, driver_call=1e-3, policy_batch=1e-3, policy_state=1e-4)
WORLD = World(cores=2, task_s=0.1, result_bytes=0)


def test_a_full_station_does_what_it_can() -> None:
    route = [Stage(None, 0.01), Stage(0, 0.01)]
    outcome = simulate([Station("driver")], [route] * 100)
    assert outcome.rate == pytest.approx(100, rel=0.02)
    assert outcome.busy["driver"] == pytest.approx(1, rel=0.02)


def test_workers_that_do_not_meet_do_what_they_would_alone() -> None:
    outcome = simulate([Station("driver", servers=10)], [[Stage(0, 0.5)]] * 10)
    assert outcome.rate == pytest.approx(20, rel=0.05)


def test_a_batch_takes_all_who_wait() -> None:
    policy = Station("policy", fixed=0.1, max_batch=50)
    outcome = simulate([policy], [[Stage(0, 0.0)]] * 50, rounds=20)
    assert outcome.rate == pytest.approx(500, rel=0.1)


def test_the_driver_limits_short_tasks_where_its_cost_says() -> None:
    # 100 workers fill it: 0.1 s of a task are 100 times what it costs the driver.
    rows = sweep(simulation, WORLD, COSTS, alone_s("simulation", WORLD))
    limit = limit_of(rows)
    assert limit is not None
    assert (limit.busiest, limit.machines) == ("driver", 64)
    assert limit_of(sweep(simulation, replace(WORLD, drivers=99), COSTS, 0.1)) != limit


def test_a_ring_is_limited_by_its_latency_alone() -> None:
    world = replace(WORLD, latency=0.0, report_every=1000)
    rows = sweep(allreduce, world, COSTS, alone_s("allreduce", world), [1, 16, 256])
    assert limit_of(rows) is None
