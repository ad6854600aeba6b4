"""A worker process: takes tasks from the core, runs them, hands back what they return.

A pool worker and a leased one run functions; what an actor's process does is in
``actor_worker``.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import random
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from ... import _core, _runtime
from ...exceptions import TaskPlacementGroupRemoved
from .. import serialize
from ..actor_methods import ActorExit
from ..protocol import label_of
from . import wire
from .actor_worker import ActorProcess
from .engine import EmbeddedEngine
from .output import redirect_worker

_MAX_CACHED_FUNCTIONS = 512


def main(
    session_fd: int,
    fds: list[int],  # segment, socket to the supervisor, pipes to print to
    settings: dict[str, Any],
    order: dict[str, Any],
) -> int:
    _start_afresh()
    segment_fd, supervisor_fd, *printed = fds
    if not _may_start(supervisor_fd):
        return 1
    node = _core.Node(
        session_fd=os.dup(session_fd),
        segment_fd=segment_fd,
        supervisor_fd=supervisor_fd,
        index=order["index"],
        epoch=order["epoch"],
        is_pool=order["is_pool"],
    )
    os.close(session_fd)
    node.report_blocking(order["counts_cpus"])
    engine = EmbeddedEngine(
        node, settings["config"], settings["session_id"], is_driver=False
    )
    _runtime.set_worker_engine(engine)
    worker = Worker(engine, order["refuses"])
    redirect_worker(printed, worker.printing_name)
    _stop_breakpoints_in_driver(worker)
    faulthandler.enable(sys.stderr.fileno())  # a crash says where
    if order["actor_id"]:
        engine.num_restarts = order["num_restarts"]
        ActorProcess(worker, order["actor_id"]).run()
    else:
        worker.run()
    _run_exit_handlers()
    return 0


def _may_start(supervisor_fd: int) -> bool:
    """Wait until the supervisor knows of this process: False if it never will.

    If the zygote is killed before it has said whom it forked, the worker is forked
    again under the same name. The first one must not have read the second's messages.
    """
    sock = socket.socket(fileno=supervisor_fd)
    data, _ = wire.receive(sock)
    sock.detach()
    return bool(data)


def _start_afresh() -> None:
    """Undo what a forked child shares with the zygote."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        # As much entropy as by itself, in a sixth of the time.
        numpy_random.seed([*memoryview(os.urandom(16)).cast("I")])
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.seed()


def _stop_breakpoints_in_driver(worker: Worker) -> None:
    def hook(*args: Any, **kwargs: Any) -> Any:
        if os.environ.get("PYTHONBREAKPOINT"):  # the user wants another debugger
            return sys.__breakpointhook__(*args, **kwargs)  # noqa: T100
        from . import debugger  # pdb takes long to import, and is rarely needed

        debugger.stop(worker.engine, worker.printing_name(), sys._getframe(1))
        return None

    sys.breakpointhook = hook


def _run_exit_handlers() -> None:
    import atexit

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


class Worker:
    """Loads code, runs one call, and reports how it ended."""

    def __init__(self, engine: EmbeddedEngine, refuses: bool) -> None:
        self.engine = engine
        self.node = engine.node
        self.refuses = refuses  # the placement group of its task was removed
        self._functions: dict[int, Callable[..., Any]] = {}
        self.leave: Callable[[], None] | None = None  # of an actor: end on purpose
        self.title = ""  # of an actor's process: its class

    def printing_name(self) -> str:
        """For people who read what this thread prints: its actor, or its task."""
        name = self.title or self.engine.context_var.get()[2]
        return name.rpartition(".")[2] or "worker"

    def run(self) -> None:
        while (call := self.node.next_task()) is not None:
            self.run_task(call)
            del call  # the task's arguments go before the next one is waited for

    def run_task(self, call: _core.Call) -> None:
        if self.refuses:
            call.fail(serialize.dump_system_error(self.group_removed()))
            return
        name = "task"
        try:
            function = self.load(call)
            name = call.method or getattr(function, "__qualname__", name)
            args, kwargs = call.arguments()
        except BaseException as error:
            self.fail(call, error, name)
            return
        self.execute(call, function, args, kwargs, name, actor_id=0)

    @staticmethod
    def group_removed() -> TaskPlacementGroupRemoved:
        return TaskPlacementGroupRemoved("its placement group was removed.")

    def execute(
        self,
        call: _core.Call,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str,
        actor_id: int,
    ) -> None:
        token = self.engine.context_var.set((call.task_id, actor_id, name))
        try:
            result = function(*args, **kwargs)
            del args, kwargs
            self.encode(call, result, name)
            del result  # what only the result holds goes to the task's owner
            call.send()
        except BaseException as error:
            self.fail(call, error, name)
        finally:
            self.engine.context_var.reset(token)

    def encode(self, call: _core.Call, result: Any, name: str) -> None:
        returns = call.num_returns
        if returns == 1:
            call.encode([result])
        else:
            call.encode(serialize.split_returns(result, returns, name))

    def fail(self, call: _core.Call, error: BaseException, name: str) -> None:
        meant = isinstance(error, SystemExit) and error.code in (None, 0)
        if self.leave is not None and (meant or isinstance(error, ActorExit)):
            self.leave()  # the caller learns it from the actor's end
            return
        if isinstance(error, SystemExit):
            # As in Ray: a task that exits ends its worker.
            _flush()
            os._exit(error.code if isinstance(error.code, int) else 1)
        call.fail(serialize.dump_error(error, name))

    def load(self, call: _core.Call) -> Callable[..., Any]:
        key = call.function_id
        function = self._functions.get(key)
        if function is None:
            header, buffers = pickle.loads(call.function_code())
            function = serialize.loads(header, buffers)
            self.node.name_function(key, label_of(function))
            # Code that holds refs would keep them alive for as long as it is cached.
            if not call.function_holds_refs:
                if len(self._functions) >= _MAX_CACHED_FUNCTIONS:
                    self._functions.pop(next(iter(self._functions)))
                self._functions[key] = function
        return function


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
