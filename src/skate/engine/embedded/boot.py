"""Where the supervisor's process begins: it starts the zygote before anything else.

The driver runs this file by its path, not as a module. Importing skate takes longer
than starting Python does; this way the zygote's import and the supervisor's overlap.
"""

from __future__ import annotations

import os
import socket
import sys


def start_zygote(python_flags: list[str]) -> tuple[int, socket.socket]:
    """The zygote's process id, and this side of the socket to it."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, theirs:
        theirs.set_inheritable(True)  # this process has one thread: no other fork
        module = "skate.engine.embedded.zygote"
        fd, parent = str(theirs.fileno()), str(os.getpid())
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, *python_flags, "-m", module, fd, parent],
            os.environ,
        )
        return pid, socket.socket(fileno=mine.detach())


def main(driver_fd: int, python_flags: list[str]) -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(os.path.dirname(here)))
    sys.path[:] = [root, *(path for path in sys.path if path != here)]
    os.set_inheritable(driver_fd, False)
    zygote = start_zygote(python_flags)
    from skate.engine.embedded import supervisor

    supervisor.main(driver_fd, zygote)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
