from __future__ import annotations

from typing import Any

import pytest

import skate


def f() -> None: ...


class A:
    def call(self) -> None: ...


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"num_cpu": 1},
            ValueError,
            r"'num_cpu' for a remote function: did you mean 'n",
        ),
        ({"zzz": 1}, ValueError, r"unknown option 'zzz'.*'num_cpus'"),
        (
            {"num_cpus": "2"},
            TypeError,
            r"num_cpus must be a number, not '2' of type str",
        ),
        ({"num_cpus": True}, TypeError, "num_cpus must be a number, not True"),
        (
            {"num_cpus": -1},
            ValueError,
            "num_cpus must be zero or more and finite, not -1",
        ),
        ({"num_gpus": float("nan")}, ValueError, "num_gpus must be zero or more"),
        ({"num_cpus": 0.00009}, ValueError, "num_cpus must be zero, or 0.0001 or more"),
        ({"resources": [1]}, TypeError, r"resources must be a dict .* not \[1\]"),
        ({"resources": {1: 1}}, TypeError, "must be strings, not 1"),
        ({"resources": {"CPU": 1}}, ValueError, "use num_cpus for that"),
        ({"resources": {"x_group_1": 1}}, ValueError, "those of placement groups"),
        ({"resources": {"bundle": 1}}, ValueError, "those of placement groups"),
        (
            {"resources": {"x": -1}},
            ValueError,
            r"resources\['x'\] must be zero or more",
        ),
        ({"num_returns": -1}, ValueError, "num_returns must be zero or more, not -1"),
        ({"num_returns": 1.0}, TypeError, r"num_returns must be an integer, not 1\.0"),
        ({"num_returns": "streaming"}, ValueError, "f has no 'yield'"),
        ({"num_returns": "stream"}, ValueError, "a number or 'streaming', not"),
        ({"num_gpus": 1.5}, ValueError, "num_gpus must be a whole number, or a share"),
        ({"_generator_backpressure_num_objects": 0}, ValueError, "1 or more, or -1"),
        ({"max_retries": -2}, ValueError, "max_retries must be .* not -2"),
        ({"name": ""}, ValueError, "name must not be the empty string"),
        ({"name": 5}, TypeError, "name must be a string, not 5"),
        (
            {"scheduling_strategy": "PACK"},
            ValueError,
            "or a strategy of .*, not 'PACK'",
        ),
        ({"runtime_env": "x"}, TypeError, "runtime_env must be a dict.*not 'x'"),
        (
            {"runtime_env": {"env_vars": {"A": 1}}},
            TypeError,
            "'env_vars'] must be a dict from strings to strings, and has 'A': 1",
        ),
        ({"runtime_env": {"working_dir": 5}}, TypeError, "path of a directory, not 5"),
        ({"runtime_env": {"py_modules": "lib"}}, TypeError, "a list of paths"),
        ({"runtime_env": {"py_modules": [5]}}, TypeError, "imported modules, not 5"),
        (
            {"runtime_env": {"envvars": {}}},
            ValueError,
            "unknown field 'envvars' in runtime_env: did you mean 'env_vars'",
        ),
        ({"retry_exceptions": 1}, TypeError, "True, False or a list of exception"),
        ({"retry_exceptions": [int]}, ValueError, "exception types, and has <class"),
        ({"retry_exceptions": [BaseException]}, ValueError, "must list exception"),
        ({"max_calls": -1}, ValueError, "max_calls must be zero"),
        ({"max_concurrency": 2}, ValueError, "unknown option 'max_concurrency'"),
    ],
)
def test_a_bad_option_of_a_function_is_refused_where_it_is_given(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        skate.remote(**options)(f)
    with pytest.raises(error, match=message):
        skate.remote(f).options(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_retries": 1}, ValueError, "'max_retries' for an actor class"),
        ({"num_returns": 2}, ValueError, "'num_returns' for an actor class"),
        (
            {"max_concurrency": 0},
            ValueError,
            "max_concurrency must be 1 or more, not 0",
        ),
        ({"get_if_exists": True}, ValueError, "needs a name to look for"),
        ({"get_if_exists": 1, "name": "x"}, TypeError, "get_if_exists must be True or"),
        ({"max_restarts": -2}, ValueError, "max_restarts must be .* not -2"),
        ({"max_task_retries": 1.5}, TypeError, "max_task_retries must be an integer"),
        ({"max_pending_calls": -2}, ValueError, "max_pending_calls must be .* not -2"),
        ({"lifetime": "for ever"}, ValueError, "'detached' or 'non_detached', not"),
        ({"concurrency_groups": {"io": 0}}, ValueError, r"\['io'\] must be 1 or more"),
        ({"concurrency_groups": 3}, TypeError, "must be a dict from names"),
        ({"allow_out_of_order_execution": 1}, TypeError, "must be True or False"),
    ],
)
def test_a_bad_option_of_a_class_is_refused_where_it_is_given(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        skate.remote(**options)(A)
    with pytest.raises(error, match=message):
        skate.remote(A).options(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_return": 2}, ValueError, "did you mean 'num_returns'"),
        ({"num_cpus": 2}, ValueError, "unknown option 'num_cpus'"),
        ({"num_returns": -1}, ValueError, "zero or more"),
        ({"concurrency_group": 1}, TypeError, "concurrency_group must be a string"),
        ({"max_task_retries": -2}, ValueError, "max_task_retries must be .* not -2"),
        ({}, TypeError, "takes options"),
    ],
)
def test_a_bad_option_of_a_method_is_refused_where_it_is_given(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        skate.method(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": 0.5, "num_gpus": 0, "resources": {"x": 1}},
        {"max_retries": -1, "num_returns": 0},
        {"num_cpus": None, "max_retries": None},
        {"memory": 1e9, "scheduling_strategy": "SPREAD", "enable_task_events": False},
        {"_metadata": {}, "label_selector": {}, "accelerator_type": "A100"},
        {"runtime_env": {}, "retry_exceptions": False, "max_calls": 0},
    ],
    ids=str,
)
def test_options_that_mean_nothing_here_are_accepted(options: dict[str, Any]) -> None:
    skate.remote(f).options(**options)


def test_accepted_options_are_checked_too() -> None:
    with pytest.raises(TypeError, match="memory must be a number"):
        skate.remote(f).options(memory="1G")


def test_options_add_up() -> None:
    changed = skate.remote(num_cpus=2)(f).options(max_retries=0).options(name="x")
    options = changed._spec.options
    assert (options.num_cpus, options.max_retries, options.name) == (2, 0, "x")


class Coroutines:
    async def call(self) -> None: ...


@pytest.mark.parametrize(
    ("cls", "given", "expected"),
    [(A, {}, 1), (Coroutines, {}, 1000), (Coroutines, {"max_concurrency": 5}, 5)],
)
def test_async_actors_run_a_thousand_calls_at_once_by_default(
    cls: type, given: dict[str, Any], expected: int
) -> None:
    actor_class = skate.remote(cls).options(**given).options(num_cpus=1)
    assert actor_class._spec.options.max_concurrency == expected


# Misuse of the decorator ------------------------------------------------------------


@pytest.mark.parametrize("target", [1, "f", None, staticmethod(f)], ids=repr)
def test_only_functions_and_classes_can_be_remote(target: Any) -> None:
    with pytest.raises(TypeError, match="applies to a function or a class"):
        skate.remote(target)


def test_empty_parentheses_are_refused() -> None:
    with pytest.raises(TypeError, match=r"write @skate\.remote\."):
        skate.remote()


def test_options_by_position_are_refused() -> None:
    with pytest.raises(TypeError, match="options by keyword"):
        skate.remote(f, num_cpus=2)  # type: ignore[call-overload]


def test_what_is_remote_already_is_refused() -> None:
    for thing in (skate.remote(f), skate.remote(A)):
        with pytest.raises(TypeError, match="remote already"):
            skate.remote(thing)  # type: ignore[call-overload]


def test_a_remote_function_is_not_called_directly() -> None:
    with pytest.raises(TypeError, match=r"f\.remote\(\.\.\.\)"):
        skate.remote(f)()


def test_an_actor_class_is_not_called_directly() -> None:
    with pytest.raises(TypeError, match=r"A\.remote\(\.\.\.\)"):
        skate.remote(A)()


def test_an_actor_class_is_not_inherited_from() -> None:
    base: Any = skate.remote(A)
    with pytest.raises(TypeError, match=r"A\.__wrapped__"):

        class B(base):
            pass


def test_coroutine_functions_are_for_actors() -> None:
    async def coroutine() -> None: ...

    with pytest.raises(TypeError, match=r"asyncio\.run"):
        skate.remote(coroutine)


def test_async_generators_are_for_actors() -> None:
    async def generator() -> Any:
        yield 1

    with pytest.raises(TypeError, match="runs in actors only"):
        skate.remote(generator)


def test_a_remote_function_keeps_its_name_and_docstring() -> None:
    def documented(x: int) -> int:
        """Say so."""
        return x

    remote = skate.remote(documented)
    assert remote.__name__ == "documented"
    assert remote.__doc__ == "Say so."
    assert remote.__wrapped__ is documented  # type: ignore[attr-defined]
    assert repr(remote).startswith("RemoteFunction(")


# init -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"engine": "inlin"}, ValueError, "'inlin'.*Did you mean 'inline'"),
        ({"engine": "raay"}, ValueError, "Did you mean 'ray'"),
        ({"num_cpus": 0}, ValueError, "num_cpus must be 1 or more, not 0"),
        ({"num_cpus": 1.5}, TypeError, r"num_cpus must be an integer, not 1\.5"),
        ({"num_gpus": -1}, ValueError, "num_gpus must be zero or more"),
        ({"resources": {"GPU": 1}}, ValueError, "use num_gpus for that"),
        ({"object_store_memory": 5}, ValueError, "less than 1 MiB"),
        ({"object_store_memory": "1G"}, TypeError, "bytes, an integer"),
        ({"address": "ray://head"}, ValueError, "'ray://head': only 'local' exists"),
        ({"preload": "torch"}, TypeError, r"such as \['torch'\]"),
    ],
)
def test_a_bad_argument_of_init_is_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        skate.init(**{"engine": "inline", **arguments})
    assert not skate.is_initialized()


def test_the_environment_variable_is_checked_as_the_argument_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SKATE_ENGINE", "embeded")
    with pytest.raises(ValueError, match="Did you mean 'embedded'"):
        skate.init()


@pytest.mark.parametrize("name", ["CPU_group_0_1", "bundle_of_things"])
@pytest.mark.parametrize("engine", ["inline", "embedded", "ray"])
def test_a_session_has_no_resources_named_like_those_of_placement_groups(
    engine: str, name: str
) -> None:
    with pytest.raises(ValueError, match="those of placement groups"):
        skate.init(engine, resources={name: 1})
