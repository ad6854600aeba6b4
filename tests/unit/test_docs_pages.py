"""The examples in the reference pages run, on every engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize("engine", ["embedded", "inline"])
@pytest.mark.parametrize(
    ("page", "num_examples"),
    [
        ("actors", 4),
        ("collectives", 1),
        ("objects", 2),
        ("serving", 4),
        ("tasks", 3),
        ("parameter-server", 2),
        ("checkpoints", 1),
        ("runtime-env", 1),
        ("simulation", 3),
        ("training", 1),
    ],
)
def test_the_examples_on_the_page_run(
    page: str, num_examples: int, engine: str, tmp_path: Path
) -> None:
    text = (PAGES / f"{page}.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= num_examples
    program = tmp_path / "examples.py"
    program.write_text(
        f"import skate\nskate.init({engine!r}, num_cpus=2)\n" + "\n".join(blocks)
    )
    subprocess.run([sys.executable, str(program)], check=True, timeout=120)
