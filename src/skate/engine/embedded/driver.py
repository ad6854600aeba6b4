"""The driver's side: start the supervisor, and end it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import resource
import subprocess
import sys
from typing import Any

from ..._exact import exact
from ...exceptions import EngineError, ResourceError
from .. import limits
from ..protocol import EngineConfig
from . import leftovers, memory_monitor, spilling, variables, wire
from .output import Printer, Shown
from .terminal import Terminal

_MEMORY_SHARE = 0.3  # of the machine's memory, for the object store
_MAX_STORE = 16 << 40  # twice that is an eighth of a process's address space
_ARENA_FACTOR = 2  # address space of one arena, in store sizes
_MAX_SPILLED = 64 << 30  # address space of one arena for what is on disk
_BESIDE_ARENA = 257 << 20  # kArenaOffset of home.hpp: what else is in the file
_SPIN_NS = 50_000  # about what sleeping and being woken costs
_SPIN_BUSY_NS = 10_000  # when more processes can run than there are cores
_END_TIMEOUT_S = 5.0
_MAX_PROCESSES = "SKATE_MAX_PROCESSES"
_LEAST_PROCESSES = 8
_HANG_REPORT = "SKATE_HANG_REPORT_S"


# Sockets to supervisors. A supervisor whose driver has become another program (exec)
# sees that from the end of its socket alone, so no forked child may hold a copy.
_sockets: set[int] = set()


def _let_go_in_forked_child() -> None:
    while _sockets:
        fd = _sockets.pop()
        with contextlib.suppress(OSError):
            # Not closed: the number is the core's, which may close it at some time.
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(nothing, fd, inheritable=False)
            os.close(nothing)


os.register_at_fork(after_in_child=_let_go_in_forked_child)


def open(config: EngineConfig) -> Any:  # noqa: A001 - every engine has `open`
    """Start a session; this process becomes its driver."""
    if sys.platform != "linux":
        raise EngineError(
            f"the embedded engine runs on Linux only, and this is {sys.platform}. Use "
            "skate.init(engine='inline'): the same program in one process."
        )
    if importlib.util.find_spec("skate._core") is None:
        raise EngineError(
            "the embedded engine needs skate's C++ core, which is not installed. "
            "Reinstall skate with a C++20 compiler present (g++), or use "
            "skate.init(engine='inline')."
        )
    from ... import _core

    if config.num_cpus > _core.MAX_CPUS:
        raise ValueError(
            f"num_cpus must be at most {_core.MAX_CPUS} on the embedded engine, not "
            f"{config.num_cpus}."
        )
    if (config.object_store_memory or 0) > _MAX_STORE:
        raise ValueError(
            f"object_store_memory must be at most {_MAX_STORE} (16 TiB) on the "
            f"embedded engine, not {config.object_store_memory}."
        )
    return _Driver(config).engine


class _Driver:
    """Owns the supervisor's process; the engine calls ``end`` when it is shut down."""

    def __init__(self, config: EngineConfig) -> None:
        self._pid = os.getpid()
        session_id = os.urandom(4).hex()
        # What is wrong in the environment is said before anything is started.
        settings = pickle.dumps(_settings(config, session_id))
        hang_report_s = _hang_report_s()
        shown = Shown.from_environment()
        with contextlib.ExitStack() as undo:  # of a start that fails halfway
            sock, theirs = wire.socket_pair()
            undo.callback(sock.close)
            with theirs:
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        *_python_flags(),
                        os.path.join(os.path.dirname(__file__), "boot.py"),
                        str(theirs.fileno()),
                    ],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for the driver alone
                    env=_environment(session_id),
                )
            undo.callback(self._kill)
            output, theirs = wire.socket_pair()
            undo.callback(output.close)
            with theirs, contextlib.suppress(BrokenPipeError):  # it is said below
                wire.send(sock, settings, [theirs.fileno()])
            # While it starts, import what this side needs.
            from ... import _core
            from .engine import EmbeddedEngine

            hello, fds = wire.receive_first(sock)
            if not hello:
                status = self._process.wait()
                raise EngineError(
                    f"skate's supervisor ended with status {status} before it had "
                    "started; its message is above."
                )
            undo.callback(self._close_all, fds)
            index, epoch = pickle.loads(hello)
            self._socket = sock.fileno()
            node = _core.Node(
                segment_fd=fds.pop(),  # from here on they are the node's
                session_fd=fds.pop(),
                supervisor_fd=sock.detach(),
                index=index,
                epoch=epoch,
                is_pool=False,
            )
            undo.callback(node.close)
            self._terminal = Terminal()
            self._printer = Printer(output, shown, self._on_packet)
            self.engine = EmbeddedEngine(node, config, session_id, is_driver=True)
            self.engine.end_session = self.end
            undo.pop_all()
        try:
            _sockets.add(self._socket)
            self._printer.start()
            _core.on_long_wait(self.engine.report_hang, hang_report_s)
        except BaseException as error:
            self.end()
            if not isinstance(error, RuntimeError):  # else there is no thread
                raise
            from .forker import describe_limit  # init has no time for it

            raise ResourceError(
                "skate.init cannot start a thread: "
                f"{describe_limit(str(error), 'process or thread')}."
            ) from error

    @staticmethod
    def _close_all(fds: list[int]) -> None:
        while fds:
            os.close(fds.pop())

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        if os.getpid() != self._pid:
            return  # a forked child: the session is its parent's
        engine = self.engine
        if engine.node.closed:
            return
        clean = False
        with contextlib.suppress(Exception):  # it may have died before
            engine.node.tell(pickle.dumps(("shutdown",)))  # it may not answer either
            clean = True
        _sockets.discard(self._socket)  # before the number can be another file's
        engine.end()
        try:
            clean &= self._process.wait(_END_TIMEOUT_S) == 0
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            clean = False
        self._printer.join(_END_TIMEOUT_S)
        if not clean:
            leftovers.end_all(engine.session, {os.getpid()})

    def _on_packet(self, packet: bytes, fds: list[int]) -> None:
        if fds:
            self._terminal.stopped(packet[1:].decode(errors="replace"), fds[0])


def _hang_report_s() -> float:
    """After how many seconds to look whether anything runs; 0: never."""
    return variables.number(
        _HANG_REPORT, 10, "a number of seconds, zero or more; 0 for no report"
    )


def _settings(config: EngineConfig, session_id: str) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    store = config.object_store_memory or int(limits.memory_bytes() * _MEMORY_SHARE)
    spill = spilling.choose()
    memory_threshold = memory_monitor.threshold()
    totals = {"CPU": float(config.num_cpus)}
    if config.num_gpus:
        totals["GPU"] = float(config.num_gpus)
    totals.update(config.resources)
    arena = _arena_bytes(store, spill.limit)
    _check_file_size(arena)
    # Under a quota, what is spent on spinning is missing afterwards.
    spins = (
        cores > 1 and limits.cpu_quota() is None and os.environ.get("SKATE_SPIN") != "0"
    )
    return {
        "driver_pid": os.getpid(),
        "session_id": session_id,
        "config": config,
        "totals": totals,
        "spill_directory": spill.directory,
        "memory_threshold": memory_threshold,
        "max_processes": _max_processes(),
        "python_flags": _python_flags(),
        "sys_path": [exact(os.path.abspath(p)) if p else os.getcwd() for p in sys.path],
        "preload": list(config.preload),
        "session": {
            "num_cpus": config.num_cpus,
            "num_cores": cores,
            "store_limit": store,
            "arena_bytes": arena,
            "spill_limit": spill.limit,
            "watch_memory": memory_threshold is not None,
            "spin_ns": _SPIN_NS if spins else 0,
            "spin_busy_ns": _SPIN_BUSY_NS if spins else 0,
            "session_id": session_id,
        },
    }


def _check_file_size(arena: int) -> None:
    """A process's memory is a file in memory, most of which is never written."""
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if most != resource.RLIM_INFINITY and most < arena + _BESIDE_ARENA:
        raise ResourceError(
            f"a session needs files (in memory) of {arena >> 20} MiB, and RLIMIT_FSIZE "
            f"allows {most >> 20} MiB. Most of that is never written. Raise the limit "
            "(ulimit -f unlimited)."
        )


def _max_processes() -> int | None:
    """Places for processes, if fewer are wanted than there are."""
    text = os.environ.get(_MAX_PROCESSES, "")
    if not text:
        return None
    if not text.isdigit() or int(text) < _LEAST_PROCESSES:
        raise EngineError(
            f"{_MAX_PROCESSES}={text!r} must be an integer of {_LEAST_PROCESSES} or "
            "more: how many processes the session may have at a time."
        )
    return int(text)


def _arena_bytes(store: int, spill_limit: int) -> int:
    """Address space: a block that is on disk keeps its place in the arena."""
    wanted = _ARENA_FACTOR * store + min(spill_limit, _MAX_SPILLED) + (64 << 20)
    return (wanted // 4096 + 1) * 4096


def _python_flags() -> list[str]:
    """The driver's own interpreter flags."""
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [flag for flag in flags if not flag.startswith("-i")]


def _environment(session_id: str) -> dict[str, str]:
    """The driver's own: tasks see it, and what they start. ``boot`` finds skate."""
    found = {**os.environ, leftovers.MARK: session_id}
    # Of another session's worker, which has started this program: no mark of ours.
    found.pop(leftovers.WORKER_MARK, None)
    return found
