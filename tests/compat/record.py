"""Run the programs under the real Ray and write down what they print.

python tests/compat/record.py [name ...]
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = sorted(p for p in (HERE / "programs").glob("*.py") if "helper" not in p.name)
ARGUMENTS = {"with_modules": ["--lr", "0.1", "-m", "x"]}


def record(program: Path) -> None:
    """Write down the output and the exit status of ``program``."""
    done = subprocess.run(
        [sys.executable, str(program), *ARGUMENTS.get(program.stem, [])],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"},
        timeout=300,
        check=False,
    )
    print(f"{program.stem}: {done.returncode}", flush=True)
    if done.returncode == 1:  # it raised: Ray may not have started in time
        return
    # What Ray itself says in the driver's terminal comes in colour.
    lines = [s for s in done.stdout.splitlines(True) if not s.startswith("\x1b[3")]
    text = f"{''.join(lines)}exit status {done.returncode}\n"
    (HERE / "recorded" / f"{program.stem}.txt").write_text(text)


if __name__ == "__main__":
    for path in PROGRAMS:
        if len(sys.argv) == 1 or path.stem in sys.argv[1:]:
            record(path)
