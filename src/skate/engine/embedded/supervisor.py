"""The supervisor: one thread that starts processes, sees them die, and cleans up.

It is started by exec from the driver (see ``boot``), and carries out what ``lifecycle``
decides. It holds the descriptor of every process's memory, so results outlive the
worker that made them; and when the driver ends, in whatever way, it ends everything
else.

It waits for nobody: what a process does not read is kept (``wire.Outbox``), what the
machine does not give is tried again (``forker``), and a message that it cannot make
sense of is answered, or dropped, with a line on standard error.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import os
import pickle
import resource
import selectors
import signal
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

from ... import _core
from .. import limits
from ..protocol import EngineConfig
from . import events as life
from . import memory_monitor, packets, wire
from .children import Children
from .collectives import Collectives
from .forker import FILES_PER_PROCESS, Forker, Process
from .lifecycle import Lifecycle
from .notes import Notes
from .output import Collector
from .placements import Placements
from .processes import PLACEMENT_REMOVED, SUPERVISOR, Cause, Proc, say, set_name
from .questions import Questions, Refusal
from .turns import Turns

_FLUSH_S = 0.01  # how often to offer a message again to a process with a full ring
_WATCH_AGAIN_S = 0.05
_LOOK_AT_CPUS_S = 0.1
_LAST_OUTPUT_S = 1.0  # for the driver to take what workers printed


class Supervisor:
    def __init__(
        self,
        driver: socket.socket,
        driver_output: socket.socket,
        zygote: tuple[int, socket.socket],
        settings: dict[str, Any],
    ):
        self._driver_pid = settings["driver_pid"]
        places = min(_core.MAX_PROCS, settings["max_processes"] or _core.MAX_PROCS)
        # So many are in reach: a share of those beyond would be no limit to anything.
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        reach = min(places, max(8, files // FILES_PER_PROCESS))
        self.control = _core.Control(**settings["session"], places=reach)
        config: EngineConfig = settings["config"]
        self.life = Lifecycle(
            settings["totals"],
            places,
            config.gpus,
            config.runtime_env,
            lambda kind: self._children.limit(kind),
            _core.FIRST_EPOCH,
            lambda proc: self._children.lives(proc),
            self.control.pool_hopes,
            reach,
        )
        self._selector = selectors.DefaultSelector()
        self.output = Collector(driver_output, self._selector)
        self.outbox = wire.Outbox()
        self._children = Children(self, settings)
        self._turns = Turns(self.life, self._carry_out)
        self.collectives = Collectives(self._children.make_group_segment)
        self.placements = Placements(settings["session_id"], self.life.is_created)
        self.notes = Notes()
        self._questions = Questions(self)
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._timer_numbers = itertools.count()
        self._memory_threshold: float | None = settings["memory_threshold"]
        self._next_look_at_memory = 0.0
        self._running = True
        self._unsent = 0
        self._said: set[str] = set()
        names = ("sys_path", "preload", "config", "session_id", "max_files")
        self.forker = Forker(
            self._children,
            zygote,
            self._selector,
            pickle.dumps({name: settings[name] for name in names}),
            self.control.session_fd,
            settings["python_flags"],
        )
        self._start_driver(driver)

    # Start and end -----------------------------------------------------------

    def _start_driver(self, sock: socket.socket) -> None:
        proc = self.life.allocate("driver")
        assert proc is not None
        process = self._children.add_driver(proc, sock)
        wire.send(
            sock,
            pickle.dumps((proc.index, proc.epoch)),
            [self.control.session_fd, process.segment],
        )
        self.watch_packets(process)
        self.watch(process.pidfd, self.stop)

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        try:
            # One worker is made ahead: most drivers want one soon.
            self.tell(life.WorkerWanted(active=0, starting=False))
            while self._running:
                for key, _ in self._selector.select(self._pause()):
                    # One event may have closed what the next is about.
                    if self._selector.get_map().get(key.fd) is key:
                        key.data()
                self._on_time(time.monotonic())
        except BaseException:
            text = traceback.format_exc()
            self.control.say_why(f"the session has ended by a fault of skate:\n{text}")
            raise
        finally:
            self.control.close_session()
            self._children.end_all()
            self.output.finish(_LAST_OUTPUT_S)
            self._children.close()
            self.forker.close()

    def _on_time(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        if self.forker.look(now):
            self.tell(life.RoomAgain())
        self._turns.tell_news()
        self.control.shrink(self.life.num_places)
        if self.outbox:
            self.outbox.flush()
        if self._memory_threshold is not None:
            self._watch_memory(self._memory_threshold)
        self._unsent = self.control.collect()

    def _pause(self) -> float | None:
        """How long to wait for an event, at most."""
        if self._unsent or self.outbox:
            return _FLUSH_S
        times = [self._timers[0][0]] if self._timers else []
        if (at := self.forker.next_time()) is not None:
            times.append(at)
        pause = max(0.0, min(times) - time.monotonic()) if times else None
        if self._memory_threshold is None:
            return pause
        period = memory_monitor.PERIOD_S
        return period if pause is None else min(period, pause)

    def later(self, seconds: float, action: Callable[[], object]) -> None:
        at = time.monotonic() + seconds
        heapq.heappush(self._timers, (at, next(self._timer_numbers), action))

    def _watch_memory(self, threshold: float) -> None:
        """End a task if memory is short, and no other while that one is ending."""
        now = time.monotonic()
        if now < self._next_look_at_memory:
            return
        self._next_look_at_memory = now + memory_monitor.PERIOD_S
        by_pid = self._children.by_pid()
        dying = any(p.killed_for == Cause.OUT_OF_MEMORY for p in by_pid.values())
        if dying or limits.memory_use() <= threshold:
            return
        running = [
            memory_monitor.RunningTask(pid, name, since, may_retry)
            for pid, name, since, may_retry in self.control.running_tasks()
            if pid in by_pid
        ]
        victim = memory_monitor.choose(running)
        if victim is None:
            return
        text = memory_monitor.describe(victim, threshold)
        say(text)
        process = by_pid[victim.pid]
        self.notes.keep(process.proc.packed, text)
        self._children.kill(process.proc, Cause.OUT_OF_MEMORY)

    def give_up(self, why: str) -> None:
        """End the session: calls that wait raise EngineDiedError with ``why``."""
        self.control.say_why(f"the session has ended: {why}")
        say(why)
        self.stop()

    def say_once(self, text: str, about: str) -> None:
        if about not in self._said:
            self._said.add(about)
            say(text)

    def process(self, proc: Proc) -> Process | None:
        return self._children.get(proc)

    def has_offspring(self, process: Process) -> bool:
        return self._children.has_offspring(process)

    def watch(self, fd: int, callback: Callable[[], object]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def unwatch(self, fd: int) -> None:
        self._selector.unregister(fd)

    def watch_packets(self, process: Process) -> None:
        if process.sock is not None:
            self.watch(process.sock.fileno(), lambda: self._on_packet(process))

    def read_last_words(self, process: Process) -> None:
        """Notes that it sent before it died."""
        if process.sock is None:
            return
        with contextlib.suppress(BlockingIOError, wire.OutOfDescriptorsError):
            while self._take_packet(process, last=True):
                pass

    # Packets -----------------------------------------------------------------

    def _on_packet(self, process: Process) -> None:
        try:
            self._take_packet(process)
        except BlockingIOError:
            pass
        except wire.OutOfDescriptorsError:
            # The whole system is short of them. The packet is still there.
            assert process.sock is not None
            self._selector.unregister(process.sock.fileno())
            self.later(_WATCH_AGAIN_S, lambda: self.watch_packets(process))

    def _take_packet(self, process: Process, last: bool = False) -> bool:
        if process.sock is None:
            return False
        data, fds = wire.receive(process.sock, block=False)
        for fd in fds:  # nobody sends us any
            os.close(fd)
        if not data:
            if process.pid == self._driver_pid and not last:
                self.stop()
            elif not last:
                self._children.close_socket(process)
            return False
        kind, payload = data[:1], data[1:]
        try:
            self._on_note(process, kind, payload)
        except Exception as error:
            # One message must not end the session of all; who asked waits for a word.
            text = traceback.format_exc()
            self.say_once(f"a message could not be handled:\n{text}", f"note {kind!r}")
            self._answer_anyway(process, kind, error)
        return True

    def _answer_anyway(self, process: Process, kind: bytes, error: Exception) -> None:
        if kind == packets.ASK:
            refusal = Refusal(f"the supervisor could not answer: {error!r}")
            self.send(process, pickle.dumps(refusal))
        elif kind in (packets.MAP, packets.SPILL_FILE):
            self.send(process, packets.descriptor_answer(kind, errno.EINVAL))

    def send(self, process: Process, data: bytes, fds: list[int] | None = None) -> None:
        if process.sock is None:
            return
        try:
            self.outbox.send(process.sock, data, fds or [])
        except (BrokenPipeError, ConnectionResetError):
            pass  # it died while we answered; its pidfd tells
        except OSError as error:
            # No memfd for a long answer: say that, which needs none.
            self.say_once(f"an answer could not be sent: {error}", "answer")
            with contextlib.suppress(OSError):
                self.outbox.send(process.sock, packets.cannot_answer(error), [])

    def _on_note(self, process: Process, kind: bytes, payload: bytes) -> None:
        match kind:
            case packets.MAP:
                found = self._children.segment_of(packets.proc_of(payload))
                self._send_descriptor(process, kind, *found)
            case packets.SPILL_FILE:
                wanted = packets.proc_of(payload)
                found = self._children.spill_file_of(wanted, process)
                self._send_descriptor(process, kind, *found)
            case packets.ASK:
                self._answer(process, pickle.loads(payload))
            case packets.TELL:
                self._told(process, pickle.loads(payload))
            case packets.WANT_WORKER:
                self._want_worker()
            case _:
                event = self._event_of(process.proc, kind, payload)
                if event is not None:
                    self.tell(event)

    def _event_of(self, sender: Proc, kind: bytes, payload: bytes) -> life.Event | None:
        try:
            return packets.event_of(sender, kind, payload)
        except Exception as error:
            if kind == packets.WANT_LEASE:  # its task would wait for ever
                why = f"the request cannot be read: {error!r}"
                task = packets.id_of(payload)
                self._carry_out(life.RefuseLease(sender, task, why))
            raise

    def _send_descriptor(
        self, process: Process, kind: bytes, fd: int, error: int
    ) -> None:
        packet = packets.descriptor_answer(kind, error)
        self.send(process, packet, [fd] if fd >= 0 else [])

    def _want_worker(self) -> None:
        self.control.clear_worker_request()
        wanted = life.WorkerWanted(
            self.control.active_workers(), self.control.any_starting()
        )
        why = self.life.room_for("pool")
        if why and not wanted.starting:
            self._children.no_worker(why)
        self.tell(wanted)

    def _answer(self, process: Process, question: tuple[Any, ...]) -> None:
        answer, fds = self._questions.answer(process, *question)
        try:
            self.send(process, pickle.dumps(answer), fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _told(self, process: Process, note: tuple[Any, ...]) -> None:
        match note:
            case ("constructed",):
                self.tell(life.ActorConstructed(process.proc))
            case ("shutdown",):
                self.stop()
            case ("ready",):
                process.ready = True
                self._children.has_started()
            case ("cannot_start", text):
                process.failure = text
            case ("ends", cause):
                process.cause = cause
            case ("constructor_failed", text, cause):
                process.cause = cause
                self.notes.keep(process.proc.packed, text)
            case ("leave_group", join):
                self.collectives.leave(process.proc, join)
            case ("remove_placement_group", group):
                self.remove_placement_group(group)

    # Commands ----------------------------------------------------------------

    def tell(self, event: life.Event) -> None:
        """Let the policy hear of it, and do what it says."""
        self._turns.tell(event)

    def remove_placement_group(self, group: str) -> None:
        if self.placements.remove(group):
            self.tell(life.GroupRemoved(group))

    def _carry_out(self, command: life.Command) -> None:
        match command:
            case life.Fork(proc, kind):
                process = self._children.get(proc)
                if process is None:
                    process = self._children.new(proc, is_pool=kind == "pool")
                process.fork = command
                self.forker.order(process)
            case life.Prepare(proc, kind):
                self._children.new(proc, is_pool=kind == "pool")
            case life.Kill(proc, cause):
                self._children.kill(proc, cause)
            case life.Retire(proc):
                self._children.retire(proc)
            case life.GrantLease(owner, task, worker):
                self.control.send_lease(
                    owner.index, owner.epoch, task, worker.index, worker.epoch
                )
            case life.RefuseLease(owner, task, why):
                number = PLACEMENT_REMOVED
                if why is not None:
                    number = self.notes.number_of(f"no process can be had: {why}.")
                self.control.send_lease_refused(owner.index, owner.epoch, task, number)
            case life.KeepNote(number, text):
                self.notes.keep(number, text)
            case life.TellDied(to, dead, cause, detail, successor, free):
                heir = successor or Proc(0, 0)
                self.control.send_died(
                    to=to.index,
                    to_epoch=to.epoch,
                    index=dead.index,
                    epoch=dead.epoch,
                    cause=cause,
                    detail=detail,
                    successor=heir.index,
                    successor_epoch=heir.epoch,
                    place_is_free=free,
                )
            case life.TellForget(to, dead, step):
                self.control.send_forget(
                    to.index, to.epoch, dead.index, dead.epoch, step
                )
            case life.Recycle(proc):
                self._children.recycle(proc)
            case life.TakeCpus(count):
                self.tell(life.CpusTaken(self.control.take_cpus(count)))
            case life.GiveCpus(count):
                self.control.give_cpus(count)
            case life.ServePool():
                if not self.control.serve_pool():
                    self.tell(life.CpusTaken(1))
            case life.WantCpus(count):
                self.control.want_cpus(count)
                # One that was put back just before tells nobody.
                if count and self.control.free_cpus():
                    self.tell(life.CpuFree())
            case life.TimeHold(number, seconds, cpus):
                self._time_hold(number, time.monotonic() + seconds, cpus)

    def _time_hold(self, number: int, until: float, cpus: int) -> None:
        """Nobody tells that CPUs are free while the pool has its turn: we look."""
        left = until - time.monotonic()
        if left <= 0 or (cpus and self.control.free_cpus() >= cpus):
            self.tell(life.HoldOver(number))
            return
        few = self.life.fewest_missing() if cpus else 0
        if 0 < few <= self.control.free_cpus():  # for another, behind it
            self.tell(life.CpusTaken(self.control.take_cpus(few)))
        pause = min(left, _LOOK_AT_CPUS_S) if cpus else left
        self.later(pause, lambda: self._time_hold(number, until, cpus))


def main(fd: int, zygote: tuple[int, socket.socket]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_name(SUPERVISOR)
    sock = socket.socket(fileno=fd)
    hello, fds = wire.receive_first(sock)
    if not hello:
        return  # init was interrupted, or its process killed
    (output_fd,) = fds
    settings = pickle.loads(hello)
    _core.become_subreaper()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    settings["max_files"] = soft  # the program's own, which its workers have as well
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    output = socket.socket(fileno=output_fd)
    _core.trim_heap()  # after its imports
    Supervisor(sock, output, zygote, settings).run()
