"""Build skate and run its contract tests on every CPython from 3.10 to 3.13 here.

Each version gets a wheel build and an environment of its own under ``build/``. Torch
and the other extras are not installed there: tests that need them skip and say so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSIONS = ("3.10", "3.11", "3.12", "3.13")
ROOT = Path(__file__).parent.parent
BUILD_TOOLS = ("scikit-build-core", "nanobind", "cmake", "ninja")


def find_python(version: str) -> Path | None:
    """A working interpreter of ``version``: from PATH, else one that pyenv built."""
    candidates = [shutil.which(f"python{version}")]
    candidates += sorted(
        map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    )
    for candidate in filter(None, candidates):
        probe = [candidate, "-c", "import ensurepip, sys; print(sys.executable)"]
        # A pyenv shim is on PATH for versions that pyenv would refuse to run.
        found = subprocess.run(probe, capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return Path(found.stdout.strip())
    return None


def check(version: str, python: Path) -> bool:
    """Whether skate builds, installs and passes its contract tests on ``python``."""
    home = ROOT / "build" / f"py{version}"
    own_python = home / "bin" / "python"
    pip = [own_python, "-m", "pip", "install", "--quiet"]
    wheel = ["--no-build-isolation", "--force-reinstall", "--no-deps", "."]
    steps: list[list[str | Path]] = [
        [*pip, *BUILD_TOOLS, "cloudpickle", "numpy"],
        [*pip, "pytest", "pytest-timeout", "hypothesis"],
        [*pip, *wheel],
        [own_python, "-m", "pytest", "tests/contract", "-q", "-p", "no:cacheprovider"],
    ]
    if not own_python.exists():
        steps.insert(0, [python, "-m", "venv", home])
    return all(_run(step, home / "bin") for step in steps)


def _run(command: list[str | Path], tools: Path) -> bool:
    env = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode == 0


def main() -> int:
    """Report on each version in turn; 1 if a version that is here failed."""
    outcome = {}
    for version in VERSIONS:
        python = find_python(version)
        if python is None:
            outcome[version] = "not on this machine"
            continue
        print(f"--- CPython {version}: {python}", flush=True)
        outcome[version] = "passed" if check(version, python) else "FAILED"
    for version, result in outcome.items():
        print(f"CPython {version}: {result}")
    return int("FAILED" in outcome.values())


if __name__ == "__main__":
    sys.exit(main())
