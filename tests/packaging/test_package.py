"""What is installed, and from what: metadata, wheels and source archives."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def requirements(extra: str | None) -> list[str]:
    """The requirements of ``extra``, or the unconditional ones."""
    listed = metadata.requires("skate") or []
    if extra is None:
        return [line for line in listed if "extra ==" not in line]
    return [line.partition(";")[0] for line in listed if f'"{extra}"' in line]


def build(hook: str, into: Path, **env: str) -> Path:
    """Run one hook of the build backend in a process of its own."""
    code = f"import scikit_build_core.build as b; print(b.{hook}({str(into)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **env},
        check=True,
        capture_output=True,
        text=True,
    )
    return into / done.stdout.splitlines()[-1]


def test_only_numpy_and_cloudpickle_are_required() -> None:
    names = sorted(line.split(">")[0] for line in requirements(None))
    assert names == ["cloudpickle", "numpy"]


@pytest.mark.parametrize("extra", ["rl", "train", "serve", "ray", "bench", "dev"])
def test_every_extra_gives_ranges_and_no_pins(extra: str) -> None:
    assert requirements(extra)
    assert not [line for line in requirements(extra) if "==" in line]


def test_the_command_is_installed() -> None:
    (command,) = metadata.entry_points(group="console_scripts", name="skate")
    assert callable(command.load())


def test_a_wheel_without_the_core_is_pure_python(tmp_path: Path) -> None:
    wheel = build("build_wheel", tmp_path, SKATE_NO_CORE="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"skate/__init__.py", "skate/py.typed"} <= set(names)
    assert not [name for name in names if name.endswith(".so")]


def test_a_source_archive_holds_what_a_build_needs_and_no_binary(
    tmp_path: Path,
) -> None:
    archive = build("build_sdist", tmp_path)
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in ROOT.glob("src/*/*.[ch]pp")}
    assert {"CMakeLists.txt", "LICENSE", "README.md", "src/skate/py.typed"} <= names
    assert sources <= names
    assert not [name for name in names if name.endswith(".so")]


def test_set_up_names_the_missing_compiler_and_its_package() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/prerequisites.py"],
        cwd=ROOT,
        env={**os.environ, "CXX": "no-such-compiler"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no C++ compiler" in done.stderr
    assert "apt-get install g++" in done.stderr
