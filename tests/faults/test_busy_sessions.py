"""Sessions that are always busy: each task has its turn, and trees need few workers."""

from __future__ import annotations

import time

import pytest

import skate

pytest.importorskip("skate._core", reason="skate's C++ core is not built")


@skate.remote
def work(seconds: float) -> int:
    time.sleep(seconds)
    return 1


@skate.remote
def parent() -> int:
    value: int = skate.get(work.remote(0.01))
    return value


@skate.remote
def tree(depth: int) -> int:
    if not depth:
        time.sleep(0.05)
        return 1
    return sum(skate.get([tree.remote(depth - 1) for _ in range(2)]))


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_task_has_its_turn_beside_a_steady_stream_of_leases(cpus: int) -> None:
    with skate.init("embedded", num_cpus=2, resources={"gate": 1}):
        lease = work.options(resources={"gate": 0.001})
        flight = [lease.remote(0.02) for _ in range(6)]
        mine = None
        for _ in range(300):
            ready, flight = skate.wait(flight)
            flight += [lease.remote(0.02) for _ in ready]
            if mine is None:
                mine = work.options(num_cpus=cpus).remote(0)
            elif skate.wait([mine], timeout=0)[0]:
                break
        assert mine is not None
        assert skate.wait([mine], timeout=0)[0]


@pytest.mark.parametrize(
    "options",
    [{"resources": {"gate": 0.001}}, {"runtime_env": {"env_vars": {"A": "1"}}}],
    ids=["resource", "environment"],
)
def test_leases_that_wait_for_a_child_each_need_few_places(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKATE_MAX_PROCESSES", "64")
    with skate.init("embedded", num_cpus=2, resources={"gate": 1}):
        refs = [parent.options(**options).remote() for _ in range(100)]
        assert skate.get(refs, timeout=60) == [1] * 100


def test_a_tree_that_takes_long_is_worked_off_in_few_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SKATE_MAX_PROCESSES", "24")
    with skate.init("embedded", num_cpus=2):
        assert skate.get(tree.remote(6), timeout=60) == 64
