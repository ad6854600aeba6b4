"""Environment variables that mean nothing: an error that names them, and no more."""

from __future__ import annotations

import os

import pytest
from processes import children

import skate
from skate.exceptions import EngineError

pytest.importorskip("skate._core", reason="skate's C++ core is not built")


@pytest.mark.parametrize("value", ["many", "nan", "inf", "-1"])
@pytest.mark.parametrize(
    "name",
    [
        "SKATE_HANG_REPORT_S",
        "SKATE_LOG_LINES_PER_SECOND",
        "SKATE_MAX_PROCESSES",
        "SKATE_MEMORY_MONITOR",
    ],
)
def test_wrong_variable_is_named_and_nothing_is_left(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    before = children(os.getpid()), len(os.listdir("/proc/self/fd"))
    with pytest.raises(EngineError, match=name):
        skate.init("embedded", num_cpus=1)
    assert (children(os.getpid()), len(os.listdir("/proc/self/fd"))) == before
    monkeypatch.delenv(name)
    with skate.init("embedded", num_cpus=1):
        assert skate.get(skate.put(1)) == 1
