"""docs/reference/differences-from-ray.md has every name of Ray's, and is true."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs/reference/differences-from-ray.md"
MODULES = {
    "Top level: `ray`": "",
    "`ray.exceptions`": ".exceptions",
    "`ray.util`": ".util",
    "`ray.util.collective`": ".util.collective",
    "`ray.util.state`": ".util.state",
}


def tables() -> dict[str, dict[str, str]]:
    """Heading -> name -> same, accepted or refused."""
    found: dict[str, dict[str, str]] = {}
    heading = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            heading = line[3:]
        row = re.fullmatch(r"\| (`.*) \| (\w+) \|.*\|", line)
        if row:
            for name in re.findall(r"`(\w+)`", row[1]):
                found.setdefault(heading, {})[name] = row[2]
    return found


TABLES = tables()


@pytest.mark.parametrize("heading", MODULES.keys() & TABLES.keys())
def test_what_is_the_same_is_there_and_what_is_refused_is_not(heading: str) -> None:
    module = importlib.import_module(f"skate.compat.ray{MODULES[heading]}")
    for name, status in TABLES[heading].items():
        assert status in ("same", "accepted", "refused")
        assert hasattr(module, name) == (status != "refused"), name


def test_what_the_runtime_context_has_is_listed() -> None:
    import skate

    for name, status in TABLES["`ray.runtime_context.RuntimeContext`"].items():
        there = hasattr(skate.RuntimeContext, name) or name == "namespace"
        assert there == (status != "refused"), name


def test_what_options_do_is_listed() -> None:
    import skate

    for name, status in TABLES["Options of tasks, actors and methods"].items():
        if status == "refused":
            with pytest.raises(ValueError, match=name):
                skate.remote(lambda: None).options(**{name: object()})


def names_of_ray() -> dict[str, set[str]]:
    ray: Any = pytest.importorskip("ray")
    options = importlib.import_module("ray._common.ray_option_utils")
    context = importlib.import_module("ray.runtime_context").RuntimeContext
    exceptions = importlib.import_module("ray.exceptions")
    return {
        "Top level: `ray`": set(ray.__all__),
        "Arguments of `ray.init`": set(inspect.signature(ray.init).parameters),
        "Options of tasks, actors and methods": {
            *options.task_options,
            *options.actor_options,
        },
        "`ray.runtime_context.RuntimeContext`": {
            name for name in dir(context) if not name.startswith("_")
        },
        "`ray.exceptions`": {
            name
            for name, thing in vars(exceptions).items()
            if isinstance(thing, type) and issubclass(thing, Exception)
        },
        "`ray.util`": set(ray.util.__all__),
        "`ray.util.collective`": set(
            importlib.import_module("ray.util.collective").__all__
        ),
    }


@pytest.mark.filterwarnings("ignore")
def test_every_name_of_ray_has_a_row() -> None:
    for heading, names in names_of_ray().items():
        assert names - TABLES[heading].keys() == set(), heading
