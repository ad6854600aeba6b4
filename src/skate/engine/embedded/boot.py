"""Where the supervisor's process begins: it imports skate, then forks the zygote.

The driver runs this file by its path, not as a module: so no file of the directory that
the program happens to be in is taken for one of Python's. Importing skate takes longer
than all else that a start needs: this way most of it is done once, and shared.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys


def fork_zygote(driver_fd: int) -> tuple[int, socket.socket]:
    """The zygote's process id, and this side of the socket to it.

    This process has one thread still, and nothing in it but skate's modules.
    """
    from skate.engine.embedded import zygote

    supervisor_pid = os.getpid()
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        mine.close()
        os.close(driver_fd)
        zygote.main(theirs.detach(), supervisor_pid)
        os._exit(0)
    theirs.close()
    return pid, mine


def spawn_zygote(python_flags: list[str]) -> tuple[int, socket.socket]:
    """Another zygote, in place of one that was killed: see ``fork_zygote``."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, theirs:
        theirs.set_inheritable(True)  # this process has one thread: no other fork
        fd, parent = str(theirs.fileno()), str(os.getpid())
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, *python_flags, os.path.abspath(__file__), fd, parent],
            os.environ,
        )
        return pid, socket.socket(fileno=mine.detach())


def main(driver_fd: int) -> None:
    gc.disable()  # while modules are made, there is little to collect
    _find_skate()
    _reset_signals()
    os.set_inheritable(driver_fd, False)
    zygote = fork_zygote(driver_fd)  # first: it makes itself ready meanwhile
    from skate.engine.embedded import supervisor

    gc.enable()
    supervisor.main(driver_fd, zygote)


def _become_zygote(fd: int, supervisor_pid: int) -> None:
    _find_skate()
    os.set_inheritable(fd, False)
    from skate.engine.embedded import zygote

    zygote.main(fd, supervisor_pid)


def _find_skate() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(os.path.dirname(here)))
    sys.path[:] = [root, *(path for path in sys.path if path != here)]


def _reset_signals() -> None:
    """What the driver blocks, or how it ends its children, is no affair of workers'.

    Both are inherited: the one from the thread that called ``init``.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:]]
    if len(numbers) == 1:
        main(*numbers)
    else:
        _become_zygote(*numbers)
