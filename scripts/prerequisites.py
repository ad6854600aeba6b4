"""Check what `make setup` needs of the system, and say how to get what is missing.

Runs on the system's Python, which may be older than skate supports.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

OLDEST = (3, 10)
PROBE = "#include <Python.h>\n#include <concepts>\n"


def missing():
    """Debian packages (and why they are needed), in the order to mention them."""
    python = "python{}.{}".format(*sys.version_info[:2])
    if importlib.util.find_spec("ensurepip") is None:
        yield python + "-venv", "Python cannot make virtual environments (no ensurepip)"
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        yield "g++", "there is no C++ compiler (set CXX if it has another name)"
        return
    include = sysconfig.get_paths()["include"]
    if not Path(include, "Python.h").exists():
        yield python + "-dev", "Python's C headers are not in " + include
    elif not _compiles(PROBE, include):
        yield "g++-12", "the C++ compiler does not understand -std=c++20"


def _compiles(source, include):
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, "-std=c++20", "-fsyntax-only", "-I" + include, "-xc++", "-"]
    done = subprocess.run(
        command, input=source.encode(), stderr=subprocess.DEVNULL, check=False
    )
    return done.returncode == 0


def main():
    """Exit with a message that names every missing part at once."""
    if sys.version_info < OLDEST:
        sys.exit(
            "skate needs Python 3.10 or newer; {} is {}.{}. Name a newer one: "
            "make PYTHON=/path/to/python3.12".format(
                sys.executable, *sys.version_info[:2]
            )
        )
    wanted = list(missing())
    if wanted:
        reasons = "".join(f"  - {reason}\n" for _, reason in wanted)
        packages = " ".join(package for package, _ in wanted)
        sys.exit(
            f"skate cannot be built here:\n{reasons}On Debian and Ubuntu: "
            f"sudo apt-get install {packages}"
        )


if __name__ == "__main__":
    main()
