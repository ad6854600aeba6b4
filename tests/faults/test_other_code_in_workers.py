"""Workers import modules themselves, and may find other code than the driver has."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

import skate

MODULE = """
import os

if os.getpid() == {driver}:

    def numbers():
        yield 1

    def loop():
        yield 1

else:

    def numbers():
        return [1]

    async def loop():
        yield 1
"""


@pytest.mark.parametrize(
    ("name", "found"), [("numbers", "list"), ("loop", "async_generator")]
)
def test_a_stream_whose_function_is_no_generator_in_the_worker_says_so(
    name: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MODULE.format(driver=os.getpid())
    (tmp_path / "other_in_workers.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "other_in_workers", raising=False)
    function = getattr(importlib.import_module("other_in_workers"), name)
    with skate.init("embedded", num_cpus=1):
        stream = skate.remote(max_retries=0)(function).remote()
        with pytest.raises(
            TypeError, match=f"must be a generator; it returned {found}"
        ):
            skate.get(next(stream), timeout=60)
