"""What is read of the stacks that other processes write."""

from __future__ import annotations

import pytest

from skate.engine.embedded.stacks import users_frames


def test_other_processes_stacks_are_read_with_the_escapes_in_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("skate.engine.frames._ENGINE", ("/home/ü/日本/skate/engine/",))
    text = r"""Thread 0x1 (most recent call first):
  File "/home/\xfc/\u65e5\u672c/skate/engine/embedded/engine.py", line 3 in get
  File "/home/\xfc/\u65e5\u672c/mine.py", line 7 in wait
  File "/odd \U99999999 \x/a "quoted".py", line ??? in wait
  File "/home/\xfc/\u65e5\u672c/skate/engine/embedded/worker.py", line 9 in main
"""
    ((first, second),) = users_frames(text)
    assert first == r'File "/home/\xfc/\u65e5\u672c/mine.py", line 7 in wait'
    assert "quoted" in second
