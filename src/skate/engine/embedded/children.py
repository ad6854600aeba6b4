"""The processes of a session, as their parent has them: descriptors, births, deaths.

Who lives and why is ``lifecycle``'s to say; here it is done, and noticed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from ... import _core
from ..._placement import lends
from . import events as life
from . import leftovers, spilling, wire
from .forker import FILES_PER_PROCESS, Process, describe_end
from .processes import RETIRE, Cause, Kind, Proc

if TYPE_CHECKING:
    from .supervisor import Supervisor

_MAX_WORKER_FAILURES = 5  # in a row, before they are ready for a task
_MAX_GENERATIONS = 64  # of what a dead worker had started; the rest ends later
_REAP_S = 0.1  # how often to look for what has ended unheard
_MANY_SIGNALS = 4096
_CHUNK = 1 << 16
_NO_WORKER_S = 10.0  # how long tasks wait if there is no worker at all
# Of these ends, there is a note with the reason in words.
_WITH_A_NOTE = {
    Cause.CONSTRUCTOR_FAILED,
    Cause.RUNTIME_ENV_FAILED,
    Cause.OUT_OF_MEMORY,
    Cause.NO_PROCESS,
}
# Descriptors: what is open for a moment, and what only workers of the pool and actors
# that restart may have, in processes.
_FOR_A_MOMENT = 16
_KEPT_FOR_SOME = 8


class Children:
    """
    Args:
        supervisor: whom to tell of births and deaths; has the parts that they touch.
    """

    def __init__(self, supervisor: Supervisor, settings: dict[str, Any]) -> None:
        self._supervisor = supervisor
        self._control = supervisor.control
        self._life = supervisor.life
        self._output = supervisor.output
        self._driver_pid = settings["driver_pid"]
        self._prints = settings["config"].log_to_driver
        self._spill_directory = settings["spill_directory"]
        self._processes: dict[Proc, Process] = {}
        self._segments: dict[Proc, int] = {}  # of the dead that are still read
        self._spill_files: dict[Proc, int] = {}  # they outlive their processes
        self._worker_failures = 0
        self._no_worker_since = 0.0
        self._reaping = False
        self._list = -1  # of our children, open: none may be free when it is wanted
        self._children()
        self._watch_ends()
        self._open_files = len(os.listdir("/proc/self/fd"))
        self._max_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)

    def get(self, proc: Proc) -> Process | None:
        return self._processes.get(proc)

    def lives(self, proc: Proc) -> bool:
        """Asked of the kernel: its end may not have been handled yet."""
        process = self._processes.get(proc)
        if process is None or process.pidfd < 0:
            return False
        end = select.poll()
        end.register(process.pidfd, select.POLLIN)
        return not end.poll(0)

    def by_pid(self) -> dict[int, Process]:
        return {p.pid: p for p in self._processes.values() if p.pid}

    def add_driver(self, proc: Proc, sock: socket.socket) -> Process:
        process = self.new(proc, is_pool=False)
        process.sock = sock
        process.pid = self._driver_pid
        process.pidfd = os.pidfd_open(self._driver_pid)
        return process

    # Limits ------------------------------------------------------------------

    def limit(self, kind: Kind) -> str:
        """Why the machine gives no further process of the kind; "": it does.

        Those that the pool needs, and actors that restart, are tried in any case.
        """
        kept = min(_KEPT_FOR_SOME, self._max_files // (8 * FILES_PER_PROCESS))
        files = FILES_PER_PROCESS * (1 if kind in ("driver", "pool") else 1 + kept)
        if self.free_files() < files:
            return (
                f"the session's supervisor may have {self._max_files} open files "
                f"(RLIMIT_NOFILE), and each process takes {FILES_PER_PROCESS} of them, "
                "one that has ended and whose values are still read 1 or 2. Raise the "
                "limit (ulimit -Hn; LimitNOFILE of a service), or drop handles of "
                "actors, and values, that are no longer needed"
            )
        return "" if kind in ("driver", "pool") else self._supervisor.forker.limit

    def free_files(self) -> int:
        """Counted, since to ask the kernel is to walk over all of them."""
        used = (
            self._open_files + _FOR_A_MOMENT + FILES_PER_PROCESS * len(self._processes)
        )
        used += (
            len(self._segments)
            + len(self._spill_files)
            + len(self._supervisor.collectives)
        )
        return self._max_files - used

    def make_group_segment(self, name: str, size: int) -> int:
        if self.free_files() < 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        fd: int = _core.make_memfd(name, size)
        return fd

    def no_worker(self, why: str) -> None:
        """Tasks wait in queues, and there can be no further worker for them now."""
        self._supervisor.say_once(
            f"tasks wait, and no further worker can be started: {why}.", "no worker"
        )
        now = time.monotonic()
        pool = (p for p in self._processes.values() if p.fork and p.fork.kind == "pool")
        if any(p.ready for p in pool):
            self._no_worker_since = 0.0
            return
        self._no_worker_since = self._no_worker_since or now
        if now - self._no_worker_since > _NO_WORKER_S:
            self._supervisor.give_up(f"tasks wait, there is no worker, and {why}.")

    # Processes that come -----------------------------------------------------

    def new(self, proc: Proc, is_pool: bool) -> Process:
        actor = self._life.actors.at(proc)
        title = "" if actor is None else actor.request.class_name.rpartition(".")[2]
        try:
            segment = self._control.make_segment()
        except (OSError, RuntimeError):
            segment = -1  # tried again when it starts
        process = Process(proc, segment)
        self._processes[proc] = process
        self._control.prepare(proc.index, proc.epoch, is_pool, title)
        return process

    def prepare_order(self, process: Process) -> tuple[dict[str, Any], list[int]]:
        fork = process.fork
        assert fork is not None
        if process.segment < 0:
            process.segment = self._control.make_segment()
        proc = process.proc
        is_pool = fork.kind == "pool"
        actor = self._life.actors.at(proc)
        resources = self._life.members[proc].resources
        order = {
            "index": proc.index,
            "epoch": proc.epoch,
            "is_pool": is_pool,
            "actor_id": 0 if actor is None else actor.request.actor_id,
            "num_restarts": 0 if actor is None else actor.num_restarts,
            # A leased worker's next task may have CPUs to lend, if this one has none.
            "counts_cpus": not is_pool
            and (actor is None or any(map(lends, resources))),
            "runtime_env": fork.runtime_env,
            "gpus": fork.gpus,
        }
        mine, theirs = wire.socket_pair()
        process.sock = mine
        self._supervisor.watch_packets(process)
        printed: list[int] = []
        if self._prints:
            try:
                process.output, printed = self._output.open()
            except OSError:
                theirs.close()
                raise
        return order, [theirs.detach(), *printed]

    def take_back(self, process: Process) -> None:
        self.close_socket(process)
        self._output.close(process.output)
        process.output = []

    def forked(self, process: Process, pid: int) -> None:
        # It is our child, or about to be: its id cannot name another process yet.
        try:
            process.pidfd = os.pidfd_open(pid)
        except OSError as error:  # the whole system is short of descriptors
            if kill_pid(pid):
                _reap(pid)
            self.not_forked(process, f"it could not be watched: {error}")
            return
        process.pid = pid
        self._output.name_process(process.output, pid)
        self._supervisor.watch(process.pidfd, lambda: self._on_exit(process))
        if process.killed_for is not None:
            kill_pid(pid)
        elif process.sock is not None:
            # The worker waits for this: see zygote._may_start.
            self._supervisor.send(process, b"go")
        self._supervisor.tell(life.Forked(process.proc))

    def not_forked(self, process: Process, why: str) -> None:
        if process.killed_for is not None:
            self._died(process, process.killed_for, 0)
            return
        self._forget(process)
        self._supervisor.tell(life.NotForked(process.proc, f"{why}."))
        if process.fork is not None and process.fork.kind == "pool":
            self.no_worker(why)

    def give_up(self, why: str) -> None:
        self._supervisor.give_up(why)

    def zygote_died(self) -> None:
        # A worker may have been made, or be in the making, whose name did not reach us.
        # It has no mark, and the zygote's session or its own.
        living = self.by_pid()
        self._kill_all_unknown(
            lambda pid: (
                _session_of(pid) not in living
                and leftovers.worker_of(pid) not in living
            )
        )

    # Processes that go -------------------------------------------------------

    def _on_exit(self, process: Process) -> None:
        try:
            result = os.waitid(os.P_PID, process.pid, os.WEXITED)
        except ChildProcessError:
            result = None  # not our child yet: the kernel is handing it over
        if result is None:
            cause, detail = Cause.EXITED, 1
        elif result.si_code == os.CLD_EXITED:
            cause, detail = Cause.EXITED, result.si_status
        else:
            cause, detail = Cause.SIGNALED, result.si_status
        self._died(process, cause, detail)

    def _died(self, process: Process, cause: Cause, detail: int) -> None:
        proc = process.proc
        self._supervisor.read_last_words(process)
        cause = process.cause or process.killed_for or cause
        if cause in _WITH_A_NOTE:
            detail = proc.packed
        code = -detail if cause == Cause.SIGNALED else detail
        if not (process.ready or process.killed_for or code == -signal.SIGKILL):
            self._count_failure(process, code)
        unread_by = frozenset(
            to
            for to in self._life.pending()
            if self._control.has_mail(to.index, proc.index)
        )
        self._forget(process)
        self._kill_orphans(process.pid)
        self._supervisor.tell(life.Died(proc, cause, detail, unread_by))

    def _forget(self, process: Process) -> None:
        """Close what only a live process needs."""
        proc = process.proc
        del self._processes[proc]
        self.close_socket(process)
        if process.pidfd >= 0:
            self._supervisor.unwatch(process.pidfd)
            os.close(process.pidfd)
        if process.segment >= 0:
            self._segments[proc] = process.segment
        self._control.mark_dead(proc.index, proc.epoch)
        self._output.close(process.output)
        self._supervisor.collectives.died(proc)

    def close_socket(self, process: Process) -> None:
        sock, process.sock = process.sock, None
        if sock is not None:
            with contextlib.suppress(KeyError):  # it is not watched for a moment
                self._supervisor.unwatch(sock.fileno())
            self._supervisor.outbox.forget(sock)
            sock.close()

    def has_started(self) -> None:
        """Some process is ready for tasks: so can be others."""
        self._worker_failures = 0
        self._no_worker_since = 0.0

    def _count_failure(self, process: Process, code: int) -> None:
        """It ended before it was ready for a task: one more may fare no better."""
        if not process.pid:
            return  # it was ended before it had begun
        self._worker_failures += 1
        if self._worker_failures < _MAX_WORKER_FAILURES:
            return
        self._supervisor.give_up(
            f"{self._worker_failures} workers in a row ended before they could take a "
            f"task, {describe_end(code)} the last time. "
            + (
                f"What it raised:\n\n{process.failure}\n"
                if process.failure
                else "What it printed is on the driver's standard error. "
            )
            + "Workers import skate, and what SKATE_PRELOAD names, from this program's "
            "sys.path: see that they can."
        )

    def _kill_orphans(self, dead_pid: int) -> None:
        """End what a dead worker had started: it is our child now.

        A worker leads a session of its own, so its offspring is known by that; one
        that made yet another session, as daemons do, by the worker's mark in its
        environment. One that has neither may be a live worker's, or a worker that is
        just being handed to us: it ends with the session.
        """
        living = self.by_pid()
        known = {dead_pid, *living}
        self._kill_all_unknown(lambda pid: _starter_of(pid, known) not in {0, *living})

    def has_offspring(self, worker: Process) -> bool:
        """Whether something runs that would end with it: see ``_kill_orphans``."""
        known = self.by_pid()
        return any(_starter_of(pid, known) == worker.pid for pid in self._unknown())

    def _kill_all_unknown(self, which: Callable[[int], bool]) -> None:
        """End the children that we do not know and that ``which`` accepts.

        What one of them had started is our child once it has ended.
        """
        for _ in range(_MAX_GENERATIONS):
            if not self._kill_unknown(which):
                return

    def _kill_unknown(self, which: Callable[[int], bool]) -> int:
        ended = 0
        for pid in self._unknown():
            if which(pid) and kill_pid(pid):
                _reap(pid)
                ended += 1
        return ended

    def _unknown(self) -> Iterator[int]:
        """Our children but for the session's own processes."""
        known = {*self.by_pid(), self._supervisor.forker.pid}
        return (pid for pid in self._children() if pid not in known)

    def _children(self) -> list[int]:
        """[]: there is no list of them, or memory is short."""
        try:
            if self._list < 0:
                path = f"/proc/self/task/{os.getpid()}/children"
                self._list = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            os.lseek(self._list, 0, os.SEEK_SET)
            text = b"".join(iter(lambda: os.read(self._list, _CHUNK), b""))
        except OSError:
            return []
        return [int(pid) for pid in text.split()]

    def _watch_ends(self) -> None:
        """Hear of children that end: of those that are not ours nobody else tells."""
        heard, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(tell, warn_on_full_buffer=False)

        def on_end() -> None:
            os.read(heard, _MANY_SIGNALS)
            if not self._reaping:
                self._reaping = True
                self._supervisor.later(_REAP_S, self._reap_unknown)

        self._supervisor.watch(heard, on_end)

    def _reap_unknown(self) -> None:
        """What a worker had started and left is ours, also while that lives on."""
        if self._supervisor.forker.is_forking:  # one may be a worker: see ``forked``
            self._supervisor.later(_REAP_S, self._reap_unknown)
            return
        self._reaping = False
        for pid in self._unknown():
            # Not waited for: of a zombie with threads there is no end to take yet.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def kill(self, proc: Proc, cause: Cause) -> None:
        process = self._processes.get(proc)
        if process is None:
            return
        process.killed_for = process.killed_for or cause
        if process.pid:
            kill_pid(process.pid)
        elif not process.forking or self._supervisor.forker.withdraw(process):
            self._died(process, cause, 0)  # it waits: nothing runs yet

    def retire(self, proc: Proc) -> None:
        """Let it end by itself: see ``worker``. One that has just begun ends now."""
        process = self._processes.get(proc)
        if process is None or not process.pid:
            self.kill(proc, Cause.KILLED)
            return
        process.killed_for = process.killed_for or Cause.KILLED
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, RETIRE)

    def end_all(self) -> None:
        """Kill and reap everything that was started, and what that left behind."""
        kill_pid(self._supervisor.forker.pid)
        for process in self._processes.values():
            if process.pid and process.pid != self._driver_pid:
                kill_pid(process.pid)
        self._reap_all()

    def _reap_all(self) -> None:
        # A worker's own children come to us when it ends: we are their subreaper.
        while children := self._children():
            killed = [pid for pid in children if kill_pid(pid)]
            if not killed:
                return  # those that are left are another user's
            for pid in killed:
                _reap(pid)
        with contextlib.suppress(ChildProcessError):
            while True:  # where there is no list of them
                os.waitpid(-1, 0)

    def close(self) -> None:
        for process in self._processes.values():
            if process.sock is not None:
                process.sock.close()

    # Memory of processes -----------------------------------------------------

    def segment_of(self, wanted: Proc) -> tuple[int, int]:
        """A descriptor of its memory, and 0; or -1 and an errno."""
        if wanted.index == 0:
            return self._control.segment_fd, 0
        process = self._processes.get(wanted)
        fd = self._segments.get(wanted, -1) if process is None else process.segment
        return fd, errno.ENOENT if fd < 0 else 0

    def spill_file_of(self, wanted: Proc, asker: Process) -> tuple[int, int]:
        """The same of its file. There is one once it, or the driver, has asked."""
        fd = self._spill_files.get(wanted, -1)
        if fd >= 0:
            return fd, 0
        may_make = wanted == asker.proc or asker.pid == self._driver_pid
        known = wanted in self._processes or wanted in self._segments
        if not (may_make and known and self._spill_directory):
            return -1, errno.ENOENT
        if self.free_files() < 1:
            return -1, errno.EMFILE
        try:
            fd = self._spill_files[wanted] = spilling.open_file(self._spill_directory)
        except OSError as problem:
            return -1, problem.errno or errno.EIO
        return fd, 0

    def recycle(self, dead: Proc) -> None:
        for table in (self._segments, self._spill_files):
            if (fd := table.pop(dead, -1)) >= 0:
                os.close(fd)


def kill_pid(pid: int) -> bool:
    """False: we may not, for it is another user's by now, as sudo makes them."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:
        return False
    return True


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _starter_of(pid: int, workers: Collection[int]) -> int:
    """The worker that had started it, or its parents; 0: it is not known."""
    session = _session_of(pid)
    return session if session in workers else leftovers.worker_of(pid)


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0
