"""Write into docs/reference/engines.md what of the contract holds on which engine.

The rows come from the ``differs`` marks of the contract tests; ``--check`` only says
whether the page is up to date.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reference/engines.md"
BEGIN, END = "<!-- from the contract tests -->\n", "<!-- end -->\n"
ENGINES = ("embedded", "inline", "ray")


class Collector:
    """A plugin of pytest: the contract tests, each with how engines differ."""

    def __init__(self) -> None:
        self.differences: dict[str, dict[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:
            if "engine_name" in item.fixturenames:
                marks = [mark.kwargs for mark in item.iter_markers("differs")]
                test = f"{item.path.stem}::{item.originalname}"
                found = self.differences.setdefault(test, {})  # of all parameters
                found.update({k: v for m in marks for k, v in m.items()})


def collect() -> dict[str, dict[str, str]]:
    """Test -> engine -> why it does not hold there."""
    collector = Collector()
    options = ["--collect-only", "-q", "-p", "no:cacheprovider"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = pytest.main([*options, str(ROOT / "tests/contract")], [collector])
    if status != pytest.ExitCode.OK:
        sys.exit(f"pytest could not collect the contract tests.\n{said.getvalue()}")
    return collector.differences


def table(differences: dict[str, dict[str, str]]) -> str:
    """The part of the page between its two marks."""
    missing = Counter(engine for why in differences.values() for engine in why)
    holds = ", ".join(
        f"{len(differences) - missing[engine]} on `{engine}`" for engine in ENGINES
    )
    lines = [
        f"Of {len(differences)} contract tests, {holds} hold. The others:",
        "",
        "| " + " | ".join(["", *(f"`{engine}`" for engine in ENGINES)]) + " |",
        "|---" * (len(ENGINES) + 1) + "|",
    ]
    for test, why in differences.items():
        if why:
            cells = [sentence(test), *(why.get(engine, "holds") for engine in ENGINES)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def sentence(test: str) -> str:
    return test.partition("::test_")[2].replace("_", " ")


def main() -> None:
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    new = table(collect())
    if "--check" not in sys.argv:
        PAGE.write_text(before + BEGIN + new + END + after)
    elif new != old:
        sys.exit(
            "docs/reference/engines.md is out of date: python scripts/engine_table.py"
        )


if __name__ == "__main__":
    main()
