"""A worker process: takes tasks from the core, runs them, hands back what they return.

A pool worker and a leased one run functions; an actor's process runs the methods of its
one object, in order, in threads (``max_concurrency``) or on an asyncio loop.
"""

from __future__ import annotations

import faulthandler
import inspect
import os
import pickle
import random
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ... import _core, _runtime
from .. import serialize
from ..protocol import label_of
from .engine import EmbeddedEngine
from .output import redirect_worker

if TYPE_CHECKING:
    import asyncio

_MAX_CACHED_FUNCTIONS = 512


def main(
    session_fd: int,
    fds: list[int],  # segment, socket to the supervisor, pipes to print to
    settings: dict[str, Any],
    order: dict[str, Any],
) -> int:
    _start_afresh()
    segment_fd, supervisor_fd, *printed = fds
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
    worker = _Worker(engine)
    redirect_worker(printed, worker.printing_name)
    faulthandler.enable(sys.stderr.fileno())  # a crash says where
    if order["is_actor"]:
        _ActorProcess(worker).run()
    else:
        worker.run()
    _run_exit_handlers()
    return 0


def _start_afresh() -> None:
    """Undo what a forked child shares with the zygote."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.seed()


def _run_exit_handlers() -> None:
    import atexit

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


class _Worker:
    """Loads code, runs one call, and reports how it ended."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self.engine = engine
        self.node = engine.node
        self._functions: dict[int, Callable[..., Any]] = {}
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
        name = "task"
        try:
            function = self.load(call)
            name = call.method or getattr(function, "__qualname__", name)
            args, kwargs = call.arguments()
        except BaseException as error:
            self.fail(call, error, name)
            return
        self.execute(call, function, args, kwargs, name, actor_id=0)

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


class _ActorProcess:
    """One object and its calls."""

    def __init__(self, worker: _Worker) -> None:
        self._worker = worker
        self._node = worker.node
        self._object: Any = None
        self._name = ""
        self._actor_id = 0

    def run(self) -> None:
        call = self._node.next_task()
        if call is None:
            return
        assert call.is_constructor
        built = self._construct(call)
        del call
        if built is None:
            return
        is_async, max_concurrency = built
        if is_async:
            _AsyncLoop(self, max_concurrency).run()
        elif max_concurrency > 1:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(max_concurrency, "skate-actor") as threads:
                self._for_each(lambda call: threads.submit(self.run_call, call))
        else:
            self._for_each(self.run_call)

    def _for_each(self, use: Callable[[_core.Call], Any]) -> None:
        while (call := self._node.next_task()) is not None:
            use(call)
            del call

    def _construct(self, call: _core.Call) -> tuple[bool, int] | None:
        try:
            code: Any = self._worker.load(call)
            cls, is_async, max_concurrency, self._name = code
            self._worker.title = self._name
            args, kwargs = call.arguments()
            self._object = cls(*args, **kwargs)
        except BaseException as error:
            text = _describe(error, f"{self._name or 'actor'}.__init__")
            self._node.tell(pickle.dumps(("constructor_failed", text)))
            self._worker.fail(call, error, f"{self._name}.__init__")
            return None
        call.encode([])
        call.send()
        return is_async, max_concurrency

    def run_call(self, call: _core.Call) -> None:
        name = f"{self._name.rpartition('.')[2]}.{call.method}"
        try:
            method = getattr(self._object, call.method)
            args, kwargs = call.arguments()
        except BaseException as error:
            self._worker.fail(call, error, name)
            return
        self._worker.execute(call, method, args, kwargs, name, self._node.index)

    async def run_call_async(self, call: _core.Call) -> None:
        name = f"{self._name.rpartition('.')[2]}.{call.method}"
        worker = self._worker
        worker.engine.context_var.set((call.task_id, self._node.index, name))
        try:
            method = getattr(self._object, call.method)
            args, kwargs = call.arguments()
            result = method(*args, **kwargs)
            del args, kwargs
            if inspect.isawaitable(result):
                result = await result
            worker.encode(call, result, name)
            del result
            call.send()
        except BaseException as error:
            worker.fail(call, error, name)


class _AsyncLoop:
    """Runs an actor's calls as coroutines; a thread brings them as they come."""

    def __init__(self, actor: _ActorProcess, max_concurrency: int) -> None:
        import asyncio

        self._actor = actor
        self._limit = asyncio.Semaphore(max_concurrency)
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self) -> None:
        import asyncio

        asyncio.run(self._serve())

    async def _serve(self) -> None:
        import asyncio

        loop = self._loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def bring() -> None:
            while (call := self._actor._node.next_task()) is not None:
                loop.call_soon_threadsafe(self._start, call)
                del call
            loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=bring, name="skate-calls", daemon=True).start()
        await ended.wait()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _start(self, call: _core.Call) -> None:
        task = self._loop.create_task(self._limited(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _limited(self, call: _core.Call) -> None:
        async with self._limit:
            await self._actor.run_call_async(call)


def _describe(error: BaseException, name: str) -> str:
    loaded = serialize.load_error(serialize.dump_error(error, name))
    cause = loaded.__cause__
    return f"{loaded}\n{cause}" if cause is not None else str(loaded)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
