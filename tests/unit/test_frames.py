from __future__ import annotations

import os
from pathlib import Path

import pytest

import skate
from skate.engine.frames import is_of_engine, is_of_library, is_of_skate, users_part

FOLDER = str(Path(skate.__file__).parent)
LIBRARY = os.path.dirname(os.__file__)


@pytest.mark.parametrize("name", ["engine/embedded/worker.py", "_runtime.py"])
def test_the_engine_is_known_by_its_place(name: str) -> None:
    assert is_of_engine(f"{FOLDER}/{name}")
    assert is_of_skate(f"{FOLDER}/{name}")


@pytest.mark.parametrize("name", ["sim/simulation.py", "rl/ppo.py", "engines.py"])
def test_building_blocks_are_of_skate_but_not_of_the_engine(name: str) -> None:
    assert not is_of_engine(f"{FOLDER}/{name}")
    assert is_of_skate(f"{FOLDER}/{name}")


@pytest.mark.parametrize(
    "file",
    [
        "/home/u/skate/train.py",
        "/home/u/skate/src/skate/engine/embedded/worker.py",
        "/home/u/skate/_runtime.py",
        f"{FOLDER}_of_mine/engine/embedded/worker.py",
        str(Path(FOLDER).parents[1] / "tests/contract/test_errors.py"),
        f"{LIBRARY}/dist-packages/thing.py",
        "/home/u/lib/python3.11/thing.py",
        "<stdin>",
        "",
    ],
)
def test_a_users_file_is_the_users_whatever_its_folder_is_called(file: str) -> None:
    assert not is_of_engine(file)
    assert not is_of_skate(file)
    assert not is_of_library(file)


def test_the_library_is_known_by_its_place() -> None:
    assert is_of_library(f"{LIBRARY}/threading.py")
    assert is_of_library(f"{LIBRARY}/concurrent/futures/thread.py")


ENGINE = f"{FOLDER}/engine/embedded/worker.py"


def test_the_users_part_of_a_stack_lies_between_two_of_the_engine() -> None:
    stack = [ENGINE, f"{FOLDER}/_runtime.py", "/skate/a.py", "/skate/b.py", ENGINE, "c"]
    assert users_part(stack, str) == ["/skate/a.py", "/skate/b.py"]
    assert users_part([ENGINE], str) == []
    assert users_part([], str) == []
