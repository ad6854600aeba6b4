"""The supervisor's hand on the zygote: processes are ordered here, one after the other.

At most a few orders are on their way at a time, so neither side's socket can be full
and neither waits for the other, however many processes are wanted. An order that the
machine cannot carry out is tried again for a while: limits of processes and of memory
come and go. Then it has failed, and with it what is behind it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import selectors
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from . import boot, wire
from . import events as life
from .processes import Cause, Proc

_MAX_AHEAD = 2  # orders on their way
_MAX_ZYGOTE_FAILURES = 5
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.02, 0.5
_PATIENCE_S = 2.0
_SHORT_S = 0.001  # it is asked for again at once
_REST_S = 1.0  # after that, processes are wanted again
FILES_PER_PROCESS = 5  # descriptors of the supervisor: see Process


@dataclass(slots=True, eq=False)
class Process:
    """One process of the session, or one that is to be.

    It costs the supervisor five descriptors: the memory, a socket, a pidfd and two
    pipes that it prints to. Of a dead one that is still read, the memory is left, and
    the file that it has spilled to.
    """

    proc: Proc
    segment: int  # -1: it could not be made
    sock: socket.socket | None = None
    pid: int = 0
    pidfd: int = -1
    fork: life.Fork | None = None  # how it is to be started
    forking: bool = False  # it is ordered, and the zygote has not answered
    ready: bool = False  # it has started: what fails now is its task's affair
    failure: str = ""  # the traceback of why it could not start
    output: list[int] = field(default_factory=list)  # pipes that it prints to
    killed_for: Cause | None = None  # we have ended it, or shall when it is forked
    cause: Cause | None = None  # what it told about its own end


class Owner(Protocol):
    """What the supervisor does with the outcome."""

    def prepare_order(self, process: Process) -> tuple[dict[str, Any], list[int]]:
        """What to send, and descriptors that are ours no more then; may raise."""

    def take_back(self, process: Process) -> None:
        """The order was lost: close what ``prepare_order`` had opened."""

    def forked(self, process: Process, pid: int) -> None: ...

    def not_forked(self, process: Process, why: str) -> None: ...

    def zygote_died(self) -> None:
        """End every process that it made and whose name did not reach us."""

    def give_up(self, why: str) -> None: ...


class Forker:
    def __init__(
        self,
        owner: Owner,
        zygote: tuple[int, socket.socket],
        selector: selectors.BaseSelector,
        greeting: bytes,
        session_fd: int,
        python_flags: list[str],
    ) -> None:
        self._owner = owner
        self._selector = selector
        self._greeting = greeting
        self._session_fd = session_fd
        self._python_flags = python_flags
        self._orders: deque[Process] = deque()
        self._sent: deque[Process] = deque()
        self._failures = 0  # zygotes in a row that ended before they had started
        self._failing_since = 0.0  # 0: the last fork went well
        self._pause = _FIRST_PAUSE_S
        self._not_before = 0.0
        self.limit = ""  # why there is no process to be had for now
        self.pid, self._sock = zygote
        self._greet()

    @property
    def is_forking(self) -> bool:
        """Whether some process may be made whose name is not known yet."""
        return bool(self._sent)

    def order(self, process: Process) -> None:
        process.forking = True
        self._orders.append(process)
        self._send_orders()

    def close(self) -> None:
        self._sock.close()

    def withdraw(self, process: Process) -> bool:
        """True: it was not sent, and no process will be made."""
        if process not in self._orders:
            return False
        self._orders.remove(process)
        process.forking = False
        return True

    def next_time(self) -> float | None:
        """When to call ``look``; None: there is no need."""
        return self._not_before or None

    def look(self, now: float) -> bool:
        """Try again what had failed. True: processes may be had again."""
        if not self._not_before or now < self._not_before:
            return False
        self._not_before = 0.0
        rested, self.limit = bool(self.limit), ""
        self._send_orders()
        return rested

    def _greet(self) -> None:
        # Killed already: replaced when its end is noticed.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            wire.send(self._sock, self._greeting, [self._session_fd])
        self._selector.register(self._sock, selectors.EVENT_READ, self._on_zygote)

    def _send_orders(self) -> None:
        ahead = 1 if self._failing_since else _MAX_AHEAD
        while self._orders and len(self._sent) < ahead and not self._not_before:
            process = self._orders.popleft()
            opened: list[int] = []
            try:
                order, opened = self._owner.prepare_order(process)
                packet = pickle.dumps(order)
                fds = [process.segment, *opened]
                wire.send(self._sock, packet, fds, block=False)
            except (BrokenPipeError, ConnectionResetError):
                pass  # noticed soon, and a new one gets the order again
            except BlockingIOError:
                self._put_back(process)
                self._selector.modify(
                    self._sock,
                    selectors.EVENT_READ | selectors.EVENT_WRITE,
                    self._on_zygote,
                )
                return
            except (OSError, RuntimeError) as error:
                self._put_back(process)
                self._has_failed(str(error))
                return
            finally:
                for fd in opened:
                    os.close(fd)
            self._sent.append(process)

    def _put_back(self, process: Process) -> None:
        self._owner.take_back(process)
        self._orders.appendleft(process)

    def _on_zygote(self) -> None:
        if self._selector.get_key(self._sock).events & selectors.EVENT_WRITE:
            self._selector.modify(self._sock, selectors.EVENT_READ, self._on_zygote)
        try:
            data, _ = wire.receive(self._sock, block=False)
        except BlockingIOError:
            self._send_orders()
            return
        except wire.OutOfDescriptorsError:  # memory is short; the answer is still there
            time.sleep(_SHORT_S)
            return
        if not data:
            self._replace()
            return
        self._failures = 0
        answer = pickle.loads(data)
        if answer is None:  # it has started
            return
        *_, pid = answer
        process = self._sent.popleft()  # it answers in order
        if pid > 0:
            self._failing_since, self._pause = 0.0, _FIRST_PAUSE_S
            process.forking = False
            self._owner.forked(process, pid)
        elif process.killed_for is not None:
            process.forking = False
            self._owner.not_forked(process, "it was ended")
        else:
            self._put_back(process)
            self._has_failed("")
        self._send_orders()

    def _has_failed(self, why: str) -> None:
        """No process could be made: wait a little, or say so."""
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if now - self._failing_since < _PATIENCE_S:
            self._not_before = now + self._pause
            self._pause = min(2 * self._pause, _MAX_PAUSE_S)
            return
        self._failing_since, self._pause = 0.0, _FIRST_PAUSE_S
        self._not_before = now + _REST_S
        self.limit = describe_limit(why)
        failed, self._orders = self._orders, deque()
        for process in failed:
            process.forking = False
            self._owner.not_forked(process, self.limit)

    def _replace(self) -> None:
        self._selector.unregister(self._sock)
        self._sock.close()
        _, status = os.waitpid(self.pid, 0)
        self._failures += 1
        if self._failures > _MAX_ZYGOTE_FAILURES:
            code = os.waitstatus_to_exitcode(status)
            self._owner.give_up(
                f"the process that starts workers ended {self._failures} times before "
                f"it could start one, {describe_end(code)} the last time. It imports "
                "skate and the modules of SKATE_PRELOAD: see what it printed, or "
                "import them in a plain Python."
            )
            return
        self._owner.zygote_died()
        while self._sent:
            self._put_back(self._sent.pop())
        self._spawn()

    def _spawn(self) -> None:
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self.pid, self._sock = boot.spawn_zygote(self._python_flags)
                break
            except OSError as error:
                if time.monotonic() > until:
                    why = describe_limit(str(error))
                    self._owner.give_up(f"its zygote was killed, and {why}")
                    return
                time.sleep(_FIRST_PAUSE_S)
        self._greet()
        self._send_orders()


def describe_end(code: int) -> str:
    return f"by signal {-code}" if code < 0 else f"with status {code}"


def describe_limit(error: str, what: str = "process") -> str:
    """Which limits there are of what a new process needs; ``error``: what is known."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    limits = [] if soft == resource.RLIM_INFINITY else [f"RLIMIT_NPROC is {soft}"]
    most = _pids_max()
    if most:
        limits.append(f"the control group's pids.max is {most}")
    told = f": {error}" if error else ""
    named = f" ({', '.join(limits)})" if limits else ""
    return (
        f"the system gives no further {what}{told}{named}, or memory is short. End "
        "actors that are no longer needed, or raise the limit"
    )


def _pids_max() -> str:
    """The limit of processes of this process's control group; "": none is known."""
    try:
        with open("/proc/self/cgroup") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return ""
    for _, controllers, path in groups:
        for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/pids"):
            if controllers not in ("", "pids"):
                continue
            for place in (path, ""):
                with contextlib.suppress(OSError):
                    with open(f"{root}{place}/pids.max") as file:
                        found = file.read().strip()
                    if found.isdigit():
                        return found
    return ""
