"""Tasks that wait for their own tasks: on Ray, each that waits holds a process."""

from __future__ import annotations

import pytest

import skate

pytestmark = pytest.mark.usefixtures("engine")


@skate.remote
def fibonacci(n: int) -> int:
    if n < 2:
        return n
    return sum(skate.get([fibonacci.remote(n - 1), fibonacci.remote(n - 2)]))


def test_nested_tasks_return_their_cpus_while_they_wait() -> None:
    assert skate.get(fibonacci.remote(9)) == 34


@skate.remote
def tree(depth: int) -> int:
    if depth == 0:
        return 1
    return 1 + sum(skate.get([tree.remote(depth - 1) for _ in range(4)]))


def test_a_tree_of_tasks_six_levels_deep_ends_on_two_cpus() -> None:
    assert skate.get(tree.remote(5)) == 1365


@skate.remote
def countdown(n: int) -> int:
    return 0 if n == 0 else 1 + skate.get(countdown.remote(n - 1))


def test_a_deep_chain_of_waiting_tasks_ends() -> None:
    assert skate.get(countdown.remote(20)) == 20
