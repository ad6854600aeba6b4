"""The examples in docs/reference/actors.md run, on every engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "actors.md"


@pytest.mark.parametrize("engine", ["embedded", "inline"])
def test_the_examples_on_the_actors_page_run(engine: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    program = tmp_path / "examples.py"
    program.write_text(
        f"import skate\nskate.init({engine!r}, num_cpus=2)\n" + "\n".join(blocks)
    )
    subprocess.run([sys.executable, str(program)], check=True, timeout=120)
