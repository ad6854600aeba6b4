"""Who has the driver's terminal, of tasks that stopped at a breakpoint."""

from __future__ import annotations

import _thread
import pty
import socket
import sys
from typing import Any

import pytest

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from skate.engine.embedded.terminal import NO, YES, Terminal


def no_thread(*_: Any) -> None:
    raise RuntimeError("can't start new thread")


def test_a_task_goes_on_where_there_is_no_thread_to_serve_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keyboard, program = map(open, pty.openpty(), ("rb", "r"))
    with keyboard, program, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", program)
        terminal = Terminal()
        for start, word in (no_thread, NO), (_thread.start_new_thread, YES):
            patch.setattr(_thread, "start_new_thread", start)
            ours, theirs = socket.socketpair()
            with theirs:
                terminal.stopped("(f pid=1) task", ours.detach())
                theirs.settimeout(30)
                assert theirs.recv(1) == word
