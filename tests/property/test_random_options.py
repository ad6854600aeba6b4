"""Options mean what they say, and hold no class that only the program knows."""

from __future__ import annotations

import pickle
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from skate._options import ActorOptions, TaskOptions


class OwnStr(str):
    def __str__(self) -> str:
        return "something else"


class OwnInt(int):
    def __int__(self) -> int:
        return -7


class OwnFloat(float):
    def __round__(self, digits: Any = None) -> Any:
        return -7.0


OWN: dict[type, type] = {str: OwnStr, int: OwnInt, float: OwnFloat}

names = st.text(alphabet="abcxyz", min_size=1, max_size=5)
counts = st.integers(1, 9)
amounts = counts | st.floats(0.5, 9.0)
anywhere: dict[str, st.SearchStrategy[Any]] = {
    "num_cpus": amounts,
    "num_gpus": counts,
    "resources": st.dictionaries(names, amounts, max_size=3),
    "name": names,
    "scheduling_strategy": st.sampled_from(["DEFAULT", "SPREAD"]),
    "runtime_env": st.fixed_dictionaries(
        {},
        optional={
            "env_vars": st.dictionaries(names, names, max_size=3),
            "working_dir": names,
            "py_modules": st.lists(names, max_size=3),
            "pip": st.lists(names, min_size=1, max_size=3),
        },
    ),
}
of_tasks: dict[str, st.SearchStrategy[Any]] = {
    "num_returns": counts | st.just("streaming"),
    "max_calls": counts,
    "max_retries": counts,
    "_generator_backpressure_num_objects": counts,
}
of_actors: dict[str, st.SearchStrategy[Any]] = {
    "namespace": names,
    "max_concurrency": counts,
    "concurrency_groups": st.dictionaries(names, counts, max_size=3),
    "max_pending_calls": counts,
    "max_restarts": counts,
    "max_task_retries": counts,
    "lifetime": st.sampled_from(["detached", "non_detached"]),
}


def disguised(value: Any) -> Any:
    if isinstance(value, dict):
        return {disguised(key): disguised(item) for key, item in value.items()}
    if isinstance(value, list):
        return [disguised(item) for item in value]
    return OWN[type(value)](value)


def check(plain: TaskOptions | ActorOptions, given_options: dict[str, Any]) -> None:
    expected = plain.updated(given_options)
    found = plain.updated({k: disguised(v) for k, v in given_options.items()})
    assert found == expected
    assert __name__.encode() not in pickle.dumps(found)


@settings(deadline=None)
@given(st.fixed_dictionaries({}, optional={**anywhere, **of_tasks}))
def test_options_of_tasks_in_any_disguise_are_the_same(options: dict[str, Any]) -> None:
    check(TaskOptions(), options)


@settings(deadline=None)
@given(st.fixed_dictionaries({}, optional={**anywhere, **of_actors}))
def test_options_of_actors_in_any_disguise_are_the_same(
    options: dict[str, Any],
) -> None:
    check(ActorOptions(), options)
