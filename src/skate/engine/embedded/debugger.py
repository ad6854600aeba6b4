"""``breakpoint()`` in a worker: pdb there, the prompt in the driver's terminal.

The worker asks the supervisor, which makes a pair of sockets and sends one end to the
driver's thread for output; ``terminal`` is what the driver does with it. This module is
imported when a worker stops for the first time.
"""

from __future__ import annotations

import os
import pdb  # noqa: T100
import socket
import sys
from typing import TYPE_CHECKING, Any

from .terminal import YES

if TYPE_CHECKING:
    from types import FrameType

    from .engine import EmbeddedEngine

_HERE = __name__.rpartition(".")[0]


def stop(engine: EmbeddedEngine, name: str, frame: FrameType) -> None:
    """Stop ``frame``, of the calling thread, at its next line."""
    debugger = _Debugger(engine, name, frame)
    if debugger.connect(frame):
        debugger.set_trace(frame)


def _is_engines(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith(_HERE)


class _Debugger(pdb.Pdb):
    """Has the terminal from a stop until it goes on freely, or the task ends."""

    def __init__(self, engine: EmbeddedEngine, name: str, frame: FrameType) -> None:
        super().__init__(stdin=sys.stdin, stdout=sys.stderr, skip=["skate.*"])
        self.nosigint = True
        self.use_rawinput = False
        self._engine = engine
        self._name = name
        self._connection: socket.socket | None = None
        self._resumed = False
        self._outermost: FrameType = frame
        caller = frame.f_back
        while caller is not None and not _is_engines(caller):
            self._outermost = caller
            caller = caller.f_back

    def connect(self, frame: FrameType) -> bool:
        where = f"{frame.f_code.co_filename}, line {frame.f_lineno}"
        answer, file = self._engine.ask(
            "breakpoint", f"({self._name} pid={os.getpid()}) {where}"
        )
        connection = socket.socket(fileno=file.detach()) if file else None
        if connection is None or connection.recv(1) != YES:
            if connection is not None:
                connection.close()
            print(
                f"breakpoint() at {where} was passed over: {answer or 'the driver'} "
                "has no terminal. Run the program in one, or use skate.init('inline').",
                file=sys.stderr,
            )
            return False
        self._connection = connection
        self.stdin = connection.makefile("r")
        self.stdout = connection.makefile("w")
        return True

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            for stream in (self.stdin, self.stdout):
                try:
                    stream.close()
                except OSError:  # the driver has gone
                    continue
            connection.close()

    # Any: pdb's own types for these differ between versions of Python.
    def interaction(self, frame: Any, traceback: Any = None) -> None:
        if self._connection is None and not self.connect(frame):
            self.set_continue()
            return
        self._resumed = False
        super().interaction(frame, traceback)
        if self._resumed:
            self._disconnect()

    def set_continue(self) -> None:
        super().set_continue()
        self._resumed = True

    def set_quit(self) -> None:
        super().set_quit()
        self._resumed = True

    def dispatch_return(self, frame: Any, arg: Any) -> Any:
        if frame is self._outermost:
            self.set_continue()
            self._disconnect()
        return super().dispatch_return(frame, arg)
