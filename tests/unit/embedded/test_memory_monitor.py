from __future__ import annotations

import os

import pytest

from skate.engine.embedded.memory_monitor import (
    RunningTask,
    choose,
    resident_bytes,
    threshold,
)
from skate.exceptions import EngineError


def test_it_is_off_unless_asked_for() -> None:
    assert threshold({}) is None
    assert threshold({"SKATE_MEMORY_MONITOR": "0.9"}) == 0.9


@pytest.mark.parametrize("text", ["95", "0", "-1", "much", "nan"])
def test_a_bad_share_is_refused(text: str) -> None:
    with pytest.raises(EngineError, match=r"such as 0\.95"):
        threshold({"SKATE_MEMORY_MONITOR": text})


def test_the_newest_task_that_may_be_tried_again_goes_first() -> None:
    old = RunningTask(1, "old", 10, may_retry=True)
    new = RunningTask(2, "new", 20, may_retry=True)
    newest = RunningTask(3, "newest", 30, may_retry=False)
    assert choose([old, newest, new]) is new
    assert choose([newest]) is newest
    assert choose([]) is None


def test_memory_of_a_process_that_has_ended_is_none() -> None:
    assert resident_bytes(os.getpid()) > 1 << 20
    assert resident_bytes(1 << 22) == 0
