"""The supervisor: one thread that starts processes, sees them die, and cleans up.

It is started by exec from the driver (see ``boot``), and carries out what ``lifecycle``
decides. It holds the descriptor of every process's memory, so results outlive the
worker that made them; and when the driver ends, in whatever way, it ends everything
else.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import resource
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ... import _core
from ..._placement import GroupInfo, lends
from .. import limits
from ..protocol import EngineConfig
from . import boot, memory_monitor, spilling, wire
from . import lifecycle as life
from .actors import ActorRequest, Name
from .lifecycle import Lifecycle
from .output import Collector
from .processes import SUPERVISOR, Cause, Proc, set_name

_PROC = struct.Struct("=HH")
_FLUSH_S = 0.01  # how often to offer a message again to a process with a full ring
_MAX_NOTES = 1000
_ACTORS_AT_ONCE = 200
_LATER = object()  # instead of an answer that is given when something has happened
_MAX_ZYGOTE_FAILURES = 5
_MAX_WORKER_FAILURES = 5  # in a row, before they are ready for a task
# Of these ends, ``_notes`` holds the reason in words.
_WITH_A_NOTE = {Cause.CONSTRUCTOR_FAILED, Cause.RUNTIME_ENV_FAILED, Cause.OUT_OF_MEMORY}
_LAST_OUTPUT_S = 1.0  # for the driver to take what workers printed


@dataclass(slots=True)
class _Process:
    proc: Proc
    segment: int
    sock: socket.socket | None = None
    pid: int = 0
    pidfd: int = -1
    fork: life.Fork | None = None  # how it is to be started
    forking: bool = False  # the zygote was asked and has not answered
    ready: bool = False  # it has started: what fails now is its task's affair
    failure: str = ""  # the traceback of why it could not start
    output: list[int] = field(default_factory=list)  # pipes that it prints to
    killed_for: Cause | None = None  # we have ended it, or shall when it is forked
    cause: Cause | None = None  # what it told about its own end
    killers: list[_Process] = field(default_factory=list)  # wait until it is dead


@dataclass(slots=True)
class _Group:
    segment: int
    world_size: int
    ranks: dict[int, int]  # rank -> process index
    left: int = 0


class Supervisor:
    def __init__(
        self,
        driver: socket.socket,
        driver_output: socket.socket,
        zygote: tuple[int, socket.socket],
        settings: dict[str, Any],
    ):
        self._settings = settings
        self._driver_pid = settings["driver_pid"]
        self._control = _core.Control(**settings["session"])
        config: EngineConfig = settings["config"]
        self._life = Lifecycle(
            settings["totals"], _core.MAX_PROCS, config.gpus, config.runtime_env
        )
        self._selector = selectors.DefaultSelector()
        self._output = Collector(driver_output, self._selector)
        self._processes: dict[Proc, _Process] = {}
        self._segments: dict[Proc, int] = {}  # of the dead that are still read
        self._spill_files: dict[Proc, int] = {}  # they outlive their processes
        self._groups: dict[str, _Group] = {}
        self._placements: dict[str, GroupInfo] = {}
        self._notes: dict[Proc, str] = {}  # why constructors failed, tasks were ended
        self._memory_threshold: float | None = settings["memory_threshold"]
        self._next_look_at_memory = 0.0
        self._running = True
        self._unsent = 0
        self._zygote_failures = 0
        self._worker_failures = 0
        self._zygote_pid, self._zygote_sock = zygote
        self._greet_zygote()
        self._start_driver(driver)

    # Start and end -----------------------------------------------------------

    def _greet_zygote(self) -> None:
        names = ("sys_path", "preload", "config", "session_id")
        wanted = {name: self._settings[name] for name in names}
        # Killed already: replaced when its end is noticed.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            wire.send(
                self._zygote_sock, pickle.dumps(wanted), [self._control.session_fd]
            )
        self._watch(self._zygote_sock.fileno(), self._on_zygote)

    def _start_driver(self, sock: socket.socket) -> None:
        proc = self._life.allocate("driver")
        assert proc is not None
        process = self._new_process(proc, is_pool=False)
        process.sock = sock
        process.pid = self._driver_pid
        process.pidfd = os.pidfd_open(self._driver_pid)
        wire.send(
            sock,
            pickle.dumps((proc.index, proc.epoch)),
            [self._control.session_fd, process.segment],
        )
        self._watch(sock.fileno(), lambda: self._on_packet(process))
        self._watch(process.pidfd, self._stop)

    def _stop(self) -> None:
        self._running = False

    def run(self) -> None:
        try:
            # One worker is made ahead: most drivers want one soon.
            self._do(self._life.handle(life.WorkerWanted(active=0, starting=False)))
            while self._running:
                for key, _ in self._selector.select(self._pause()):
                    # One event may have closed what the next is about.
                    if self._selector.get_map().get(key.fd) is key:
                        key.data()
                if self._unsent:
                    self._unsent = self._control.flush()
                if self._memory_threshold is not None:
                    self._watch_memory(self._memory_threshold)
        finally:
            self._end_all()

    def _pause(self) -> float | None:
        if self._unsent:
            return _FLUSH_S
        return None if self._memory_threshold is None else memory_monitor.PERIOD_S

    def _watch_memory(self, threshold: float) -> None:
        """End a task if memory is short, and no other while that one is ending."""
        now = time.monotonic()
        if now < self._next_look_at_memory:
            return
        self._next_look_at_memory = now + memory_monitor.PERIOD_S
        by_pid = {p.pid: p for p in self._processes.values() if p.pid}
        dying = any(p.killed_for == Cause.OUT_OF_MEMORY for p in by_pid.values())
        if dying or limits.memory_use() <= threshold:
            return
        running = [
            memory_monitor.RunningTask(pid, name, since, may_retry)
            for pid, name, since, may_retry in self._control.running_tasks()
            if pid in by_pid
        ]
        victim = memory_monitor.choose(running)
        if victim is None:
            return
        text = memory_monitor.describe(victim, threshold)
        print(f"skate: {text}", file=sys.stderr, flush=True)
        process = by_pid[victim.pid]
        process.killed_for = Cause.OUT_OF_MEMORY
        self._note(process.proc, text)
        _kill(process.pid)

    def _note(self, proc: Proc, text: str) -> None:
        self._notes[proc] = text
        if len(self._notes) > _MAX_NOTES:
            self._notes.pop(next(iter(self._notes)))

    def _end_all(self) -> None:
        """Kill and reap everything that was started, and what that left behind."""
        self._control.close_session()
        _kill(self._zygote_pid)
        for process in self._processes.values():
            if process.pid and process.pid != self._driver_pid:
                _kill(process.pid)
        self._reap_all()
        self._output.finish(_LAST_OUTPUT_S)

    def _reap_all(self) -> None:
        while True:
            # A worker's own children come to us when it ends: we are their subreaper.
            for pid in _children():
                _kill(pid)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return

    # Events ------------------------------------------------------------------

    def _watch(self, fd: int, callback: Callable[[], object]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def _on_zygote(self) -> None:
        data, _ = wire.receive(self._zygote_sock)
        if not data:
            self._replace_zygote()
            return
        self._zygote_failures = 0
        index, epoch, pid = pickle.loads(data)
        process = self._processes.get(Proc(index, epoch))
        if process is None:
            return
        process.forking = False
        if pid == 0:
            self._died(process, Cause.EXITED, 1)
            return
        process.pid = pid
        self._output.name_process(process.output, pid)
        # It is our child, or about to be: its id cannot name another process yet.
        process.pidfd = os.pidfd_open(pid)
        self._watch(process.pidfd, lambda: self._on_exit(process))
        if process.killed_for is not None:
            _kill(pid)
        elif process.sock is not None:
            # The worker waits for this: see zygote._may_start.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                wire.send(process.sock, b"go")

    def _replace_zygote(self) -> None:
        self._selector.unregister(self._zygote_sock.fileno())
        self._zygote_sock.close()
        _, status = os.waitpid(self._zygote_pid, 0)
        self._zygote_failures += 1
        if self._zygote_failures > _MAX_ZYGOTE_FAILURES:
            code = os.waitstatus_to_exitcode(status)
            self._give_up(
                f"the process that starts workers ended {self._zygote_failures} times "
                f"before it had started one, {_describe_end(code)} the last time. It "
                "imports skate and the modules of SKATE_PRELOAD: see what it printed, "
                "or import them in a plain Python."
            )
            return
        # A worker may have been made, or be in the making, whose name did not reach us.
        while self._kill_unknown(lambda pid: True):
            pass
        lost = [p for p in self._processes.values() if p.forking]
        self._zygote_pid, self._zygote_sock = boot.spawn_zygote(
            self._settings["python_flags"]
        )
        self._greet_zygote()
        for process in lost:
            if process.sock is not None:
                self._selector.unregister(process.sock.fileno())
                process.sock.close()
            self._output.close(process.output)
            self._order_fork(process)

    def _on_exit(self, process: _Process) -> None:
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

    def _died(self, process: _Process, cause: Cause, detail: int) -> None:
        proc = process.proc
        self._read_last_words(process)
        cause = process.cause or process.killed_for or cause
        if cause in _WITH_A_NOTE:
            detail = proc.index | proc.epoch << 16
        code = -detail if cause == Cause.SIGNALED else detail
        if not (process.ready or process.killed_for or code == -signal.SIGKILL):
            self._count_failure(process, code)
        del self._processes[proc]
        for fd in (process.pidfd, process.sock.fileno() if process.sock else -1):
            if fd >= 0:
                self._selector.unregister(fd)
        if process.sock is not None:
            process.sock.close()
        if process.pidfd >= 0:
            os.close(process.pidfd)
        self._segments[proc] = process.segment
        self._control.mark_dead(proc.index, proc.epoch)
        self._kill_orphans(process.pid)
        self._output.close(process.output)
        self._do(self._life.handle(life.Died(proc, cause, detail)))
        for killer in process.killers:
            with contextlib.suppress(OSError):
                if killer.sock is not None:
                    wire.send(killer.sock, pickle.dumps(None))

    def _count_failure(self, process: _Process, code: int) -> None:
        """It ended before it was ready for a task: one more may fare no better."""
        if not process.pid:
            return  # there was no process to be had; that may change
        self._worker_failures += 1
        if self._worker_failures < _MAX_WORKER_FAILURES:
            return
        self._give_up(
            f"{self._worker_failures} workers in a row ended before they could take a "
            f"task, {_describe_end(code)} the last time. "
            + (
                f"What it raised:\n\n{process.failure}\n"
                if process.failure
                else "What it printed is on the driver's standard error. "
            )
            + "Workers import skate, and what SKATE_PRELOAD names, from this program's "
            "sys.path: see that they can."
        )

    def _give_up(self, why: str) -> None:
        """End the session: calls that wait raise EngineDiedError with ``why``."""
        self._control.say_why(f"the session has ended: {why}")
        print(f"skate: {why}", file=sys.stderr, flush=True)
        self._stop()

    def _read_last_words(self, process: _Process) -> None:
        """Notes that it sent before it died."""
        if process.sock is None:
            return
        with contextlib.suppress(BlockingIOError):
            while self._on_packet(process, last=True):
                pass

    def _kill_orphans(self, dead_pid: int) -> None:
        """End what a dead worker had started: it is our child now.

        A worker leads a session of its own, so its offspring is known by that; one that
        made yet another session is whatever child we do not know, unless a worker is
        just being handed to us.
        """
        forking = any(p.forking for p in self._processes.values())
        self._kill_unknown(lambda pid: not forking or _session_of(pid) == dead_pid)

    def _kill_unknown(self, which: Callable[[int], bool]) -> int:
        """End the children that we do not know and that ``which`` accepts; how many."""
        known = {p.pid for p in self._processes.values()} | {self._zygote_pid}
        ended = 0
        for pid in _children():
            if pid in known or not which(pid):
                continue
            _kill(pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            ended += 1
        return ended

    # Packets -----------------------------------------------------------------

    def _on_packet(self, process: _Process, last: bool = False) -> bool:
        assert process.sock is not None
        data, _ = wire.receive(process.sock, block=False)
        if not data:
            if process.pid == self._driver_pid and not last:
                self._stop()
            elif not last:
                self._selector.unregister(process.sock.fileno())
                process.sock.close()
                process.sock = None
            return False
        kind, payload = data[:1], data[1:]
        try:
            self._on_note(process, kind, payload)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it died while we answered; its pidfd tells
        return True

    def _on_note(self, process: _Process, kind: bytes, payload: bytes) -> None:
        proc = process.proc
        match kind:
            case b"M":
                self._send_segment(process, Proc(*_PROC.unpack(payload)))
            case b"S":
                self._send_spill_file(process, Proc(*_PROC.unpack(payload)))
            case b"A":
                self._answer(process, pickle.loads(payload))
            case b"T":
                self._told(process, pickle.loads(payload))
            case b"W":
                self._control.clear_worker_request()
                wanted = life.WorkerWanted(
                    self._control.active_workers(), self._control.any_starting()
                )
                self._do(self._life.handle(wanted))
            case b"L":
                task = int.from_bytes(payload[:8], "little")
                needs, env = pickle.loads(payload[8:])
                self._do(self._life.handle(life.LeaseWanted(proc, task, needs, env)))
            case b"X":
                task = int.from_bytes(payload, "little")
                self._do(self._life.handle(life.LeaseDropped(proc, task)))
            case b"D":
                worker = Proc(*_PROC.unpack(payload))
                self._do(self._life.handle(life.LeaseDone(worker)))
            case b"H":
                actor_id = int.from_bytes(payload[:8], "little")
                told = Proc(*_PROC.unpack(payload[8:]))
                self._do(self._life.handle(life.ActorUnwanted(actor_id, told)))
            case b"B":
                self._do(self._life.handle(life.Blocked(proc)))
            case b"R":
                self._do(self._life.handle(life.Unblocked(proc)))
            case b"F":
                self._do(self._life.handle(life.CpuFree()))
            case b"C":
                dead = Proc(*_PROC.unpack(payload[:4]))
                held = payload[4]  # see message.hpp
                self._do(
                    self._life.handle(
                        life.Confirmed(
                            proc, dead, bool(held & 1), bool(held & 2), held > 3
                        )
                    )
                )
            case b"U":
                self._do(self._life.handle(life.LetGo(Proc(*_PROC.unpack(payload)))))

    def _send_segment(self, process: _Process, wanted: Proc) -> None:
        assert process.sock is not None
        if wanted.index == 0:
            fd = self._control.segment_fd
        elif wanted in self._processes:
            fd = self._processes[wanted].segment
        else:
            fd = self._segments.get(wanted, -1)
        wire.send(process.sock, b"M", [fd] if fd >= 0 else [])

    def _send_spill_file(self, process: _Process, wanted: Proc) -> None:
        """The file of ``wanted``. There is one once it, or the driver, has asked."""
        assert process.sock is not None
        directory = self._settings["spill_directory"]
        may_make = wanted == process.proc or process.pid == self._driver_pid
        known = wanted in self._processes or wanted in self._segments
        if may_make and known and wanted not in self._spill_files and directory:
            with contextlib.suppress(OSError):
                self._spill_files[wanted] = spilling.open_file(directory)
        fd = self._spill_files.get(wanted, -1)
        wire.send(process.sock, b"S", [fd] if fd >= 0 else [])

    def _answer(self, process: _Process, question: tuple[Any, ...]) -> None:
        assert process.sock is not None
        name, *arguments = question
        fds: list[int] = []
        if name == "group":
            answer, fds = self._join_group(process, *arguments)
        elif name == "breakpoint":
            answer, fds = self._stop_at_breakpoint(*arguments)
        else:
            answer = getattr(self, f"_ask_{name}")(process, *arguments)
        if answer is _LATER:
            return
        wire.send(process.sock, pickle.dumps(answer), fds)
        if name == "breakpoint":
            for fd in fds:
                os.close(fd)

    def _told(self, process: _Process, note: tuple[Any, ...]) -> None:
        match note:
            case ("constructed",):
                self._do(self._life.handle(life.ActorConstructed(process.proc)))
            case ("ready",):
                process.ready = True
                self._worker_failures = 0
            case ("cannot_start", text):
                process.failure = text
            case ("ends", cause):
                process.cause = cause
            case ("constructor_failed", text, cause):
                process.cause = cause
                self._note(process.proc, text)
            case ("leave_group", name):
                group = self._groups.get(name)
                if group is not None:
                    group.left += 1
                    if group.left >= group.world_size:
                        os.close(group.segment)
                        del self._groups[name]

    # Questions ---------------------------------------------------------------

    def _ask_create_actor(self, process: _Process, request: ActorRequest) -> Any:
        if request.name is not None and self._life.actors.named(request.name):
            return "exists", None
        proc = self._life.allocate("actor")
        if proc is None:
            return "full", _core.MAX_PROCS
        self._do(self._life.handle(life.ActorWanted(process.proc, proc, request)))
        return "ok", (proc.index, proc.epoch)

    def _ask_get_actor(self, process: _Process, name: Name) -> Any:
        actor = self._life.actors.named(name)
        if actor is None:
            names = self._life.actors.names()
            return "unknown", [known for space, known in names if space == name[0]]
        return "ok", (actor.request.actor_id, actor.request.interface)

    def _ask_kill(self, process: _Process, actor_id: int, no_restart: bool) -> Any:
        """Answered once the process is dead: later calls do not reach it any more."""
        actor = self._life.actors.get(actor_id)
        victim = self._processes.get(actor.proc) if actor is not None else None
        if victim is None or victim is process:
            self._do(self._life.handle(life.ActorKilled(actor_id, no_restart)))
            return None
        victim.killers.append(process)
        self._do(self._life.handle(life.ActorKilled(actor_id, no_restart)))
        return _LATER

    def _ask_list_actors(self, process: _Process, start: int) -> Any:
        """Some at a time: an answer is one packet."""
        part = itertools.islice(self._life.actors, start, start + _ACTORS_AT_ONCE)
        answer = []
        for actor in part:
            now = self._processes.get(actor.proc)
            request = actor.request
            answer.append(
                (
                    request.actor_id,
                    request.class_name,
                    actor.state,
                    request.name,
                    actor.num_restarts,
                    now.pid if now is not None else 0,
                    request.is_detached,
                    actor.cause,
                    actor.detail,
                )
            )
        return answer

    def _ask_available(self, process: _Process) -> Any:
        return self._life.available(self._control.free_cpus())

    def _ask_create_placement_group(self, process: _Process, info: GroupInfo) -> str:
        group = os.urandom(8).hex()
        self._placements[group] = info
        if not info.reason:
            self._do(self._life.handle(life.GroupWanted(group, info.bundles)))
        return group

    def _ask_remove_placement_group(self, process: _Process, group: str) -> Any:
        info = self._placements.get(group)
        if info is not None and info.state != "REMOVED":
            self._placements[group] = info._replace(state="REMOVED", reason="")
            self._do(self._life.handle(life.GroupRemoved(group)))

    def _ask_placement_groups(self, process: _Process) -> dict[str, GroupInfo]:
        return {
            group: info._replace(state="CREATED")
            if self._life.is_created(group)
            else info
            for group, info in self._placements.items()
        }

    def _ask_assigned(self, process: _Process) -> Any:
        return self._life.assigned(process.proc)

    def _stop_at_breakpoint(self, title: str) -> tuple[str, list[int]]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours:
            heard = self._output.call_driver(b"B" + title.encode(), [ours.fileno()])
        fd = theirs.detach()
        if heard:
            return "", [fd]
        os.close(fd)
        return "the driver, which does not answer,", []

    def _ask_waiting(self, process: _Process) -> Any:
        """Requests for resources that were not granted yet, oldest first."""
        return [
            (
                (r.owner.index, r.task) if r.owner is not None else None,
                r.actor.index if r.actor is not None else None,
                dict(r.resources),
            )
            for r in self._life.waiting()
        ]

    def _ask_holders(self, process: _Process) -> Any:
        """Who holds resources: process index -> what."""
        return self._life.holders()

    def _ask_note(self, process: _Process, index: int, epoch: int) -> Any:
        return self._notes.get(Proc(index, epoch), "")

    def _ask_shutdown(self, process: _Process) -> Any:
        self._stop()
        return "ok"

    def _join_group(
        self, process: _Process, name: str, rank: int, world_size: int, size: int
    ) -> tuple[Any, list[int]]:
        group = self._groups.get(name)
        if group is None:
            segment = _core.make_memfd("skate-group", size)
            group = self._groups[name] = _Group(segment, world_size, {})
        if group.world_size != world_size:
            return ("mismatch", group.world_size), []
        holder = group.ranks.setdefault(rank, process.proc.index)
        if holder != process.proc.index:
            return ("taken", rank), []
        if len(group.ranks) < world_size:
            missing = sorted(set(range(world_size)) - group.ranks.keys())
            return ("waiting", missing), []
        members = [group.ranks[r] for r in range(world_size)]
        return ("ok", members), [group.segment]

    # Commands ----------------------------------------------------------------

    def _do(self, commands: list[life.Command]) -> None:
        for command in commands:
            match command:
                case life.Fork(proc, kind):
                    process = self._processes.get(proc)
                    if process is None:
                        process = self._new_process(proc, is_pool=kind == "pool")
                    process.fork = command
                    self._order_fork(process)
                case life.Prepare(proc, kind):
                    self._new_process(proc, is_pool=kind == "pool")
                case life.Kill(proc, cause):
                    self._kill(proc, cause)
                case life.GrantLease(owner, task, worker):
                    self._control.send_lease(
                        owner.index, owner.epoch, task, worker.index, worker.epoch
                    )
                case life.TellDied(to, dead, cause, detail, successor):
                    heir = successor or Proc(0, 0)
                    self._control.send_died(
                        to=to.index,
                        to_epoch=to.epoch,
                        index=dead.index,
                        epoch=dead.epoch,
                        cause=cause,
                        detail=detail,
                        successor=heir.index,
                        successor_epoch=heir.epoch,
                    )
                case life.TellForget(to, dead, step):
                    self._control.send_forget(
                        to.index, to.epoch, dead.index, dead.epoch, step
                    )
                case life.Recycle(proc):
                    os.close(self._segments.pop(proc))
                    if (spilled := self._spill_files.pop(proc, -1)) >= 0:
                        os.close(spilled)
                    self._control.retire(proc.index)
                case life.TakeCpus(count):
                    taken = self._control.take_cpus(count)
                    self._do(self._life.handle(life.CpusTaken(taken)))
                case life.GiveCpus(count):
                    self._control.give_cpus(count)
                case life.WantCpus(count):
                    self._control.want_cpus(count)
                    # One that was put back just before tells nobody.
                    if count and self._control.free_cpus():
                        self._do(self._life.handle(life.CpuFree()))
        self._unsent = self._control.flush()

    def _new_process(self, proc: Proc, is_pool: bool) -> _Process:
        actor = self._life.actors.at(proc)
        title = "" if actor is None else actor.request.class_name.rpartition(".")[2]
        process = _Process(proc, self._control.make_segment())
        self._processes[proc] = process
        self._control.prepare(proc.index, proc.epoch, is_pool, title)
        return process

    def _order_fork(self, process: _Process) -> None:
        fork = process.fork
        assert fork is not None
        is_pool = fork.kind == "pool"
        mine, theirs = wire.socket_pair()
        process.sock = mine
        self._watch(mine.fileno(), lambda: self._on_packet(process))
        proc = process.proc
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
            "refuses": fork.refuses,
            "runtime_env": fork.runtime_env,
            "gpus": fork.gpus,
        }
        printed: list[int] = []
        if self._settings["config"].log_to_driver:
            process.output, printed = self._output.open()
        process.forking = True
        # A zygote that has just been killed is noticed later, and replaced: the new one
        # gets the order again.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            wire.send(
                self._zygote_sock,
                pickle.dumps(order),
                [process.segment, theirs.fileno(), *printed],
            )
        theirs.close()
        for fd in printed:
            os.close(fd)

    def _kill(self, proc: Proc, cause: Cause) -> None:
        process = self._processes.get(proc)
        if process is None:
            return
        process.killed_for = process.killed_for or cause
        if process.pid:
            _kill(process.pid)
        elif not process.forking:  # it waits for resources: nothing runs yet
            self._died(process, cause, 0)


def _describe_end(code: int) -> str:
    return f"by signal {-code}" if code < 0 else f"with status {code}"


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return []


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def main(fd: int, zygote: tuple[int, socket.socket]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_name(SUPERVISOR)
    sock = socket.socket(fileno=fd)
    hello, (output_fd,) = wire.receive(sock)
    settings = pickle.loads(hello)
    _core.become_subreaper()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    output = socket.socket(fileno=output_fd)
    Supervisor(sock, output, zygote, settings).run()
