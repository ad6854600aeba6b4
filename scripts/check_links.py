"""Check that every relative link in the project's documents leads to a file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")


def broken_links(root: Path) -> list[str]:
    """``document:line: target`` of each link whose file does not exist."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(
        listing, cwd=root, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    return [
        f"{name}:{number}: {target}"
        for name in names
        for number, line in enumerate((root / name).read_text().splitlines(), 1)
        for target in LINK.findall(line)
        if not (root / name).parent.joinpath(target).exists()
    ]


if __name__ == "__main__":
    broken = broken_links(Path(__file__).parent.parent)
    sys.exit("links to files that do not exist:\n" + "\n".join(broken) if broken else 0)
