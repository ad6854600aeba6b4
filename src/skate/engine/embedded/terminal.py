"""Tasks that stopped at a ``breakpoint()`` have the driver's terminal, one by one."""

from __future__ import annotations

import _thread
import os
import queue
import select
import socket
import sys
import threading
import traceback

# The driver's first word to a task that stopped: whether it gets the terminal.
YES, NO = b"y", b"n"
_CHUNK = 1 << 16


class Terminal:
    """Gives the driver's terminal to one stopped task after the other."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[str, socket.socket]] = (
            queue.SimpleQueue()
        )
        self._lock = threading.Lock()
        self._serving = 0

    def stopped(self, title: str, fd: int) -> None:
        connection = socket.socket(fileno=fd)
        if not _has_terminal():
            _answer(connection, NO)
            connection.close()
            return
        with self._lock:
            if self._serving == 0:
                try:
                    _thread.start_new_thread(self._serve, ())
                except RuntimeError:  # there is no thread to be had
                    _answer(connection, NO)
                    connection.close()
                    return
            self._serving += 1
            self._waiting.put((title, connection))

    def _serve(self) -> None:
        more = True
        while more:
            title, connection = self._waiting.get()
            try:
                with connection:
                    if _answer(connection, YES):
                        _say(f"\n{title} has stopped; c lets it go on.\n")
                        _converse(connection)
                        _say(f"{title.partition(')')[0]}) goes on.\n")
            except Exception:  # the next task gets the terminal all the same
                traceback.print_exc()
            finally:
                with self._lock:
                    self._serving -= 1
                    more = self._serving > 0


def _has_terminal() -> bool:
    try:
        return os.isatty(sys.stdin.fileno())
    except (AttributeError, OSError, ValueError):
        return False


def _answer(connection: socket.socket, word: bytes) -> bool:
    try:
        connection.sendall(word)
    except OSError:
        return False
    return True


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _converse(connection: socket.socket) -> None:
    """Until the task goes on, or its process ends."""
    keyboard = sys.stdin.fileno()
    sources = select.poll()  # select() takes no descriptor over 1023
    sources.register(connection, select.POLLIN)
    sources.register(keyboard, select.POLLIN)
    while True:
        ready = [fd for fd, _ in sources.poll()]
        try:
            if connection.fileno() in ready:
                data = connection.recv(_CHUNK)
                if not data:
                    return
                _say(data.decode(errors="replace"))
            elif keyboard in ready:
                typed = os.read(keyboard, _CHUNK)
                if typed:
                    connection.sendall(typed)
                else:  # Ctrl-D
                    connection.shutdown(socket.SHUT_WR)
                    sources.unregister(keyboard)
        except OSError:
            return
