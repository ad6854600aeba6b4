"""Imports point one way: the table of the style guide, checked on every module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import skate

SOURCE = Path(skate.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))

FIRST_ROW = {
    "exceptions",
    "_ref",
    "_stream",
    "_amounts",
    "_options",
    "_placement",
    "_exact",
    "_runtime_env",
    "_importable",
    "kernels",
}
CONTRACT = {
    *FIRST_ROW,
    "engine.protocol",
    "engine.actor_methods",
    "engine.receiving",
}
SHARED = {
    *CONTRACT,
    "engine.serialize",
    "engine.futures",
    "engine.ref_future",
    "engine.limits",
    "engine.gpus",
    "engine.surroundings",
    "engine.timeline",
    "engine.advice",
    "engine.frames",
}
PUBLIC = {"", "actor", "exceptions", "collective", "kernels", "debug"}

# A module's room, by the longest prefix of its name -> what it may import of skate.
# A name stands for itself and everything below it; "" is ``import skate`` alone.
MAY_IMPORT: dict[str, set[str]] = {
    "exceptions": set(),
    "_ref": {"exceptions"},
    "_stream": {"_ref"},
    "_amounts": set(),
    "_options": {"exceptions", "_amounts", "_placement", "_exact", "_runtime_env"},
    "_placement": {"exceptions", "_amounts"},
    "_exact": set(),
    "_runtime_env": {"exceptions", "_exact"},
    "_importable": set(),
    "kernels": {"_core"},
    "engine": {
        "engine.protocol",
        "engine.embedded.driver",
        "engine.embedded.observe",
        "engine.inline.engine",
        "engine.ray.driver",
    },
    "engine.timeline": set(),
    "engine.advice": {"exceptions", "engine.frames"},
    "engine.frames": set(),
    "engine.protocol": {
        *("_ref", "_stream", "_exact", "_options", "_placement", "_runtime_env")
    },
    "engine.actor_methods": set(),
    "engine.receiving": {"engine.actor_methods"},
    "engine.serialize": CONTRACT | {"_importable", "engine.frames"},
    "engine.futures": SHARED,
    "engine.ref_future": {"engine.futures"},
    "engine.limits": set(),
    "engine.gpus": {"_amounts", "_placement"},
    "engine.surroundings": {"_runtime_env", "exceptions"},
    "engine.embedded": {*SHARED, "engine.embedded", "_core", "_runtime"},
    "engine.inline": {*SHARED, "engine.inline"},
    "engine.ray": {*SHARED, "engine.ray", "_runtime"},
    "_runtime": {*CONTRACT, "engine"},
    "_context": {*CONTRACT, "_actor", "_runtime"},
    "_observe": {*CONTRACT, "_runtime", "engine"},
    "_progress": {*CONTRACT, "_runtime"},
    "debug": {"_leftovers", "_observe"},
    "_leftovers": {*CONTRACT, "_runtime"},
    "_task": {*CONTRACT, "_actor", "_runtime"},
    "_actor": {*CONTRACT, "_runtime"},
    "actor": {*CONTRACT, "_actor", "_runtime"},
    "_gather": {*CONTRACT, "_actor", "_runtime", "_task"},
    "_operand": {"kernels"},
    "collective": {*CONTRACT, "_runtime", "_operand"},
    "__main__": {"cli"},
    "sim": {*PUBLIC, "sim"},
    "serve": {*PUBLIC, "serve"},
    "train": {*PUBLIC, "train"},
    "rl": {*PUBLIC, "sim", "serve", "train", "rl"},
    "cli": {*PUBLIC, "sim", "serve", "train", "rl", "cli"},
    "util": {*PUBLIC, "util"},
    # Like collective: public calls, with one implementation for all engines.
    "util.serialization": {*PUBLIC, "engine.serialize"},
    "util.names": {*PUBLIC, "_runtime"},
    "util.state": {*PUBLIC, "util", "_runtime"},
    "util.placement_group": {*PUBLIC, *CONTRACT, "util", "_runtime"},
    "util.scheduling_strategies": {*PUBLIC, "util", "_placement", "_exact"},
    "compat": {*PUBLIC, "util", "compat"},
    "testing": {*PUBLIC, "testing"},
}


def module_name(path: Path) -> str:
    parts = list(path.relative_to(SOURCE).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def imports_of(path: Path) -> set[str]:
    """The modules of skate that ``path`` imports, wherever in the file it does."""
    package = list(path.relative_to(SOURCE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["skate", *package[: len(package) - node.level + 1]]
            if node.level == 0:
                base = []
            base += (node.module or "").split(".") if node.module else []
            names = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        found |= {as_module(name) for name in names if name.split(".")[0] == "skate"}
    return found


def as_module(dotted: str) -> str:
    """``skate.engine.protocol.Engine`` is of the module ``engine.protocol``."""
    parts = dotted.split(".")[1:]
    while parts:
        path = SOURCE.joinpath(*parts)
        if path.is_dir() or path.with_suffix(".py").exists() or parts == ["_core"]:
            break
        parts.pop()
    return ".".join(parts)


def room_of(name: str) -> str:
    while name and name not in MAY_IMPORT:
        name = name.rpartition(".")[0]
    return name


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    name = module_name(path)
    if not name:
        return  # the public face imports everything that it shows
    room = room_of(name)
    assert room, f"{name} is in no room of the table: add a row"
    allowed = MAY_IMPORT[room]
    for imported in imports_of(path):
        parts = imported.split(".")
        prefixes = {".".join(parts[: i + 1]) for i in range(len(parts))} | {imported}
        assert imported in allowed or prefixes & (allowed - {""}), (
            f"{name} imports skate.{imported}, which {room} may not"
        )


@pytest.mark.parametrize("room", ["sim", "serve", "train", "rl", "cli"])
def test_a_building_block_imports_no_private_name(room: str) -> None:
    for path in (SOURCE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and "skate" in (node.module or ""):
                private = [a.name for a in node.names if a.name.startswith("_")]
                assert not private, f"{path.name} imports {private} of {node.module}"
