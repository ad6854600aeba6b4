"""``runtime_env``: variables, a directory and modules of a task's own."""

from __future__ import annotations

import os
import types
from pathlib import Path
from typing import Any

import pytest

import skate
from skate.exceptions import RuntimeEnvSetupError

COPIED = "Ray runs in copies of directories, which it makes per job"
REFUSED = "Ray has it"


@skate.remote
def variable(name: str) -> str | None:
    return os.environ.get(name)


@skate.remote
def process() -> int:
    return os.getpid()


@skate.remote
class Room:
    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def crash(self) -> None:
        os._exit(1)


@skate.remote
class AsyncRoom:
    async def variable(self, name: str) -> str | None:
        return os.environ.get(name)


def with_vars(thing: Any, **variables: str) -> Any:
    return thing.options(runtime_env={"env_vars": variables})


def test_a_task_finds_its_variables_and_no_other_task_does(engine: str) -> None:
    refs = [with_vars(variable, SKATE_T=f"{i}").remote("SKATE_T") for i in range(3)]
    assert skate.get(refs) == ["0", "1", "2"]
    assert skate.get(variable.remote("SKATE_T")) is None
    assert "SKATE_T" not in os.environ


def test_an_actor_finds_its_variables_in_every_call(engine: str) -> None:
    for room in (Room, AsyncRoom):
        actor = with_vars(room, SKATE_T="mine").remote()
        other = room.remote()
        refs = [a.variable.remote("SKATE_T") for a in (actor, other, actor)]
        assert skate.get(refs) == ["mine", None, "mine"]


@pytest.mark.differs(
    inline="os._exit would end the test's own process",
    ray="a call that meets the restart fails",
)
def test_a_restarted_actor_finds_them_again(engine: str) -> None:
    actor = with_vars(Room.options(max_restarts=1), SKATE_T="mine").remote()
    skate.wait([actor.crash.remote()])
    assert skate.get(actor.variable.remote("SKATE_T")) == "mine"


@pytest.mark.differs(inline="there is one process")
def test_equal_environments_share_processes_and_different_ones_do_not(
    engine: str,
) -> None:
    pids = {
        name: {skate.get(with_vars(process, SKATE_T=name).remote()) for _ in range(5)}
        for name in ("a", "b")
    }
    plain = skate.get(process.remote())
    assert pids["a"].isdisjoint(pids["b"])
    assert plain not in pids["a"] | pids["b"]
    assert max(len(pids["a"]), len(pids["b"])) < 5


def test_a_task_that_waits_for_another_has_its_variables_again(engine: str) -> None:
    @skate.remote
    def outer() -> list[str | None]:
        inner = with_vars(variable, SKATE_T="inner").remote("SKATE_T")
        return [os.environ.get("SKATE_T"), skate.get(inner), os.environ.get("SKATE_T")]

    seen = skate.get(with_vars(outer, SKATE_T="outer").remote())
    assert seen == ["outer", "inner", "outer"]


def test_what_a_task_starts_is_inside_its_environment(engine: str) -> None:
    @skate.remote
    def outer() -> list[str | None]:
        task = with_vars(variable, SKATE_U="2").remote
        room = Room.remote()
        refs = [task("SKATE_T"), task("SKATE_U"), room.variable.remote("SKATE_T")]
        return skate.get(refs)

    assert skate.get(with_vars(outer, SKATE_T="1").remote()) == ["1", "2", "1"]


@pytest.mark.differs(ray="Ray expands them in no order that is documented")
def test_a_value_may_refer_to_other_variables(engine: str) -> None:
    task = with_vars(variable, SKATE_T="${SKATE_A}:${HOME}", SKATE_A="a")
    assert skate.get(task.remote("SKATE_T")) == f"a:{os.environ['HOME']}"


@pytest.mark.differs(ray="Ray expands them in no order that is documented")
@pytest.mark.parametrize("value", ["pa$$word", "$$$$", "${", "$1", "$", "${SKATE_NOT}"])
def test_a_dollar_that_names_no_variable_stays(engine: str, value: str) -> None:
    assert skate.get(with_vars(variable, SKATE_T=value).remote("SKATE_T")) == value


@pytest.mark.differs(ray=COPIED)
def test_working_dir_is_where_a_task_runs_and_finds_modules(
    engine: str, tmp_path: Path
) -> None:
    (tmp_path / "skate_test_of_dir.py").write_text("WHERE = 'in working_dir'")
    here = os.getcwd()

    @skate.remote
    def look() -> tuple[str, str]:
        import skate_test_of_dir  # type: ignore[import-not-found]

        return os.getcwd(), skate_test_of_dir.WHERE

    task = look.options(runtime_env={"working_dir": tmp_path})
    assert skate.get(task.remote()) == (str(tmp_path), "in working_dir")
    assert os.getcwd() == here


@pytest.mark.differs(ray=COPIED)
def test_py_modules_can_be_imported(engine: str, tmp_path: Path) -> None:
    package = tmp_path / "lib" / "skate_test_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("NAME = 'package'")
    module = tmp_path / "skate_test_single.py"
    module.write_text("NAME = 'module'")
    imported = types.ModuleType("skate_test_single")
    imported.__file__ = str(module)

    @skate.remote
    class Importer:
        def names(self) -> list[str]:
            import skate_test_package  # type: ignore[import-not-found]
            import skate_test_single  # type: ignore[import-not-found]

            return [skate_test_package.NAME, skate_test_single.NAME]

    env = {"py_modules": [str(package), imported]}
    actor = Importer.options(runtime_env=env).remote()
    assert skate.get(actor.names.remote()) == ["package", "module"]


@pytest.mark.differs(ray=COPIED)
def test_a_session_may_have_one_and_tasks_add_to_it(start: Any, tmp_path: Path) -> None:
    (tmp_path / "skate_test_of_session.py").write_text("X = 1")
    variables = {"SKATE_S": "session", "SKATE_T": "session"}
    start(num_cpus=2, runtime_env={"env_vars": variables, "working_dir": str(tmp_path)})

    @skate.remote
    def look() -> list[Any]:
        import skate_test_of_session  # type: ignore[import-not-found]

        names = ("SKATE_S", "SKATE_T")
        return [skate_test_of_session.X, os.getcwd(), *map(os.environ.get, names)]

    where = [1, str(tmp_path)]
    assert skate.get(look.remote()) == [*where, "session", "session"]
    task = with_vars(look, SKATE_T="task")
    assert skate.get(task.remote()) == [*where, "session", "task"]
    assert "SKATE_S" not in os.environ  # it is not the driver's


def test_the_runtime_context_tells_it(engine: str) -> None:
    @skate.remote
    def look() -> Any:
        return skate.get_runtime_context().runtime_env

    assert skate.get(with_vars(look, A="1").remote()) == {"env_vars": {"A": "1"}}
    assert skate.get(look.remote()) == {}


@pytest.mark.differs(ray=COPIED)
def test_a_directory_that_is_not_there_fails_the_task_and_the_actor(
    engine: str,
) -> None:
    env = {"working_dir": "/nowhere/at/all"}
    words = "/nowhere/at/all.*is no directory"
    with pytest.raises(RuntimeEnvSetupError, match=words):
        skate.get(variable.options(runtime_env=env).remote("A"))
    actor = Room.options(runtime_env=env, max_restarts=2).remote()
    with pytest.raises(RuntimeEnvSetupError, match=words):
        skate.get(actor.variable.remote("A"))
    env = {"py_modules": ["/nowhere/no_module"]}
    with pytest.raises(RuntimeEnvSetupError, match="no_module"):
        skate.get(variable.options(runtime_env=env).remote("A"))


@pytest.mark.differs(ray=COPIED)
def test_init_refuses_a_directory_that_is_not_there(start: Any) -> None:
    with pytest.raises(RuntimeEnvSetupError, match="/nowhere"):
        start(runtime_env={"working_dir": "/nowhere"})


@pytest.mark.differs(ray=REFUSED)
@pytest.mark.parametrize("field", ["pip", "conda", "uv", "container"])
def test_what_must_be_installed_needs_ray(engine: str, field: str) -> None:
    task = variable.options(runtime_env={field: ["x"]})
    with pytest.raises(ValueError, match=f"{field}.*needs engine='ray'"):
        task.remote("A")


@pytest.mark.differs(ray=REFUSED)
def test_what_must_be_fetched_needs_ray(engine: str) -> None:
    task = variable.options(runtime_env={"working_dir": "s3://bucket/dir.zip"})
    with pytest.raises(ValueError, match=r"s3://bucket/dir\.zip.*needs engine='ray'"):
        task.remote("A")


@pytest.mark.differs(ray=REFUSED)
def test_init_refuses_and_accepts_what_an_option_does(start: Any) -> None:
    with pytest.raises(ValueError, match=r"conda.*needs engine='ray'"):
        start(runtime_env={"conda": "base"})
    start(runtime_env={"excludes": ["*.bin"], "config": {"eager_install": True}})
    assert skate.get(variable.remote("SKATE_T")) is None
