"""An actor's process: makes its one object and runs the calls of its methods.

In order on the main thread; in threads, a pool for each concurrency group; if a method
is ``async def``, all on one asyncio loop; or as its receiver pleases.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ... import _core
from ..._ref import ObjectRef
from ...exceptions import ResourceError
from .. import advice, serialize
from ..actor_methods import BUILT_IN_METHODS, ActorExit, find_method
from ..receiving import check_wait
from .event_loop import new_loop
from .processes import Cause
from .streaming import check_generator, send_all

if TYPE_CHECKING:
    import asyncio

    from .engine import ActorCode
    from .worker import Worker


_CANCELLED = _core.Notice.CANCELLED
_LOOK_AGAIN_S = 0.02
_CLEAN_UP_S = 2.0


class ActorProcess:
    """One object and its calls."""

    def __init__(self, worker: Worker, actor_id: int) -> None:
        self.node = worker.node
        self._worker = worker
        self._actor_id = actor_id
        self._object: Any = None
        self._name = "actor"
        self.leaving = False
        worker.leave = self._leave

    def run(self) -> None:
        call = self.node.next_task()
        if call is None:
            self._tell("ends", Cause.OUT_OF_SCOPE)
            return
        assert call.is_constructor
        code = self._construct(call)
        del call
        if code is None:
            return
        self._tell("constructed")
        try:
            self._serve(code)
        except SystemExit as error:  # of the handler of a signal, between calls
            if error.code not in (None, 0):
                raise
            self._leave()
        if not self.leaving:
            self._tell("ends", Cause.OUT_OF_SCOPE)

    def let_go(self) -> None:
        self._object = None

    def _serve(self, code: ActorCode) -> None:
        if code.receiver is not None:
            _Receiver(self, code, code.receiver).run()
        elif code.is_async:
            if advice.wanted():
                _core.watch_for_blocking(advice.blocked_in_a_coroutine)
            _Loop(self, code).run()
        elif code.max_concurrency > 1 or code.groups:
            _Threads(self, code).run()
        else:
            self._run_in_order()

    def _run_in_order(self) -> None:
        context = self._worker.engine.context_var
        others = set(BUILT_IN_METHODS)
        while (
            call := self.node.serve_calls(
                self._object, self._name, others, context, self._actor_id, self._failed
            )
        ) is not None:
            self.run_call(call)
            del call

    def _failed(
        self, call: _core.Call, error: BaseException, name: str, called: bool
    ) -> None:
        retry_on = self._worker.retry_on(call) if called else False
        self._worker.fail(call, error, name, retry_on)

    def runs_many(self) -> None:
        """Several calls are under way at once: hear which of them are cancelled."""
        self.node.want_notices()

    def _tell(self, *note: Any) -> None:
        self.node.tell(pickle.dumps(note))

    def _construct(self, call: _core.Call) -> ActorCode | None:
        name = f"{self._name}.__init__"
        try:
            if self._worker.refusal is not None:
                raise self._worker.refusal
            code: ActorCode = self._worker.load(call).function
            self._name = code.name.rpartition(".")[2]
            self._worker.title = code.name
            self._worker.engine.own_interface = code.interface
            self.node.name_process(f"actor {code.name}")
            name = f"{code.name}.__init__"
            args, kwargs = call.arguments()
            context = (call.task_id, self._actor_id, name)
            token = self._worker.engine.context_var.set(context)
            try:
                self._object = code.cls(*args, **kwargs)
            finally:
                self._worker.engine.context_var.reset(token)
        except ActorExit:
            self._leave()
            return None
        except BaseException as error:
            if self.node.in_forked_child:
                self._worker.fail(call, error, name)
            text = f"the actor's constructor raised.\n\n{_describe(error, name)}"
            cause = Cause.CONSTRUCTOR_FAILED
            if error is self._worker.refusal:
                cause, text = Cause.RUNTIME_ENV_FAILED, str(error)
            self._tell("constructor_failed", text, cause)
            self._worker.fail(call, error, name)
            return None
        call.encode([])
        call.send()
        return code

    def run_call(self, call: _core.Call) -> None:
        name = f"{self._name}.{call.method}"
        try:
            method = find_method(self._object, call.method)
            args, kwargs = call.arguments()
        except BaseException as error:
            self._worker.fail(call, error, name)
            return
        self._worker.execute(call, method, args, kwargs, name, self._actor_id)

    async def run_call_async(
        self, call: _core.Call, room: Callable[[], Awaitable[Any]]
    ) -> None:
        """Await the call; ``room()`` ends when items of its stream have been read."""
        import asyncio

        name = f"{self._name}.{call.method}"
        worker = self._worker
        worker.engine.context_var.set((call.task_id, self._actor_id, name))
        try:
            method = find_method(self._object, call.method)
            args, kwargs = call.arguments()
            result = method(*args, **kwargs)
            del args, kwargs
            if call.is_streaming:
                check_generator(result, name, in_loop=True)
                await send_all(call, result, room)
                result = None
            elif inspect.isawaitable(result) and not isinstance(result, ObjectRef):
                result = await result
            worker.encode(call, result, name)
            del result
            call.send()
        except asyncio.CancelledError as error:
            if call.cancelled:
                raise
            worker.fail(call, error, name)
        except BaseException as error:
            worker.fail(call, error, name, worker.retry_on(call))

    def _leave(self) -> None:
        """End on purpose: what runs still ends, the rest fails with the process."""
        if self.node.in_forked_child:
            os._exit(0)
        self.leaving = True
        self._tell("ends", Cause.ACTOR_EXIT)
        self.node.stop_serving()


class _Received:
    """A call in the hands of the actor's receiver: see ``protocol.ReceivedCall``."""

    __slots__ = ("_call", "_is_answered", "_receiver", "args", "kwargs", "method")

    def __init__(self, receiver: _Receiver, call: _core.Call, method: str) -> None:
        self._receiver = receiver
        self._call = call
        self.method = method
        self.args, self.kwargs = call.arguments()
        self._is_answered = False

    @property
    def wanted(self) -> bool:
        return self._call.wanted

    def answer(self, value: Any) -> None:
        if not self._is_first():
            return
        try:
            if self._call.num_returns == 1:
                self._call.encode([value])
            else:
                self._receiver.worker.encode(self._call, value, self.method)
        except Exception as error:
            self._receiver.worker.fail(self._call, error, self.method)
        else:
            self._call.send()

    def fail(self, error: BaseException) -> None:
        if self._is_first():
            name = f"{self._receiver.name}.{self.method}"
            self._receiver.worker.fail(self._call, error, name)

    def _is_first(self) -> bool:
        if self._is_answered:
            return False
        self._is_answered = True
        self.args, self.kwargs = (), {}  # views are let go
        self._receiver.unanswered.discard(self)
        return True


class _Receiver:
    """Gives the actor's calls to one of its methods, as many as have come."""

    _AT_ONCE = 4096

    def __init__(self, actor: ActorProcess, code: ActorCode, method: str) -> None:
        self._actor = actor
        self._receive = getattr(actor._object, method)
        self.name = code.name
        self.worker = actor._worker
        self.unanswered: set[_Received] = set()

    def run(self) -> None:
        actor = self._actor
        actor.runs_many()
        self.worker.engine.context_var.set((0, actor._actor_id, self.name))
        wait_s: float | None = None
        calls: list[_Received] = []
        while self._take(calls, wait_s):
            wait_s = self._give(calls)
            calls = []
        # It may still answer what came before the last handle went.
        while calls or self._is_waited_for(wait_s):
            wait_s = self._give(calls)
            calls = []

    def _is_waited_for(self, wait_s: float | None) -> bool:
        """Whether somebody still wants an answer when the receiver's time has come."""
        if wait_s is None:
            return False
        at = time.monotonic() + wait_s
        while not self._actor.leaving and any(
            call.wanted for call in tuple(self.unanswered)
        ):
            left = at - time.monotonic()
            if left <= 0:
                return True
            time.sleep(min(left, _LOOK_AGAIN_S))
        return False

    def _take(self, calls: list[_Received], wait_s: float | None) -> bool:
        """Wait for a call, and take what else is there; False if none will come."""
        next_call = self._actor.node.next_call
        try:
            call = next_call(wait_s)
            while call is not None:
                self._add(calls, call)
                if len(calls) == self._AT_ONCE:
                    break
                call = next_call(0)
        except StopIteration:
            return False
        return True

    def _add(self, calls: list[_Received], call: _core.Call) -> None:
        if call.notice:
            return  # whoever holds the call asks it whether it is wanted
        method = call.method
        if method in BUILT_IN_METHODS:
            self._actor.run_call(call)
            return
        try:
            received = _Received(self, call, method)
        except BaseException as error:
            self.worker.fail(call, error, f"{self.name}.{method}")
            return
        self.unanswered.add(received)
        calls.append(received)

    def _give(self, calls: list[_Received]) -> float | None:
        try:
            return check_wait(self._receive(calls))
        except BaseException as error:
            if not self.worker.ends_for(error):
                for call in calls:
                    call.fail(error)
            return None


class _Threads:
    """Runs an actor's calls in threads, a pool of them for each group."""

    def __init__(self, actor: ActorProcess, code: ActorCode) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._actor = actor
        self._sizes = [code.max_concurrency, *code.groups]
        self._pools = [
            ThreadPoolExecutor(size, f"skate-actor-{group}")
            for group, size in enumerate(self._sizes)
        ]
        self._have_threads: set[int] = set()  # groups
        self._waiting: dict[int, _core.Call] = {}  # for a thread

    def run(self) -> None:
        self._actor.runs_many()
        self._actor.node.serve_in_threads([min(size, 1 << 20) for size in self._sizes])
        while (call := self._actor.node.next_task()) is not None:
            if call.notice == _CANCELLED:
                if (waiting := self._waiting.pop(call.task_id, None)) is not None:
                    waiting.fail_cancelled()
                    del waiting
            elif not call.notice:
                self._submit(call)
            del call
        for pool in self._pools:
            pool.shutdown(cancel_futures=self._actor.leaving)

    def _submit(self, call: _core.Call) -> None:
        self._waiting[call.task_id] = call
        try:
            self._pools[call.group].submit(self._run, call.task_id)
            self._have_threads.add(call.group)
        except RuntimeError as error:  # no thread can be started
            # The pool has the call all the same, for the threads that it has.
            if call.group in self._have_threads:
                return
            del self._waiting[call.task_id]
            refusal = ResourceError(
                f"no thread can be started for {call.method}(): {error}. Fewer "
                f"threads, or more memory or processes (ulimit), leave room for it."
            )
            call.fail(serialize.dump_system_error(refusal), [], False)

    def _run(self, task_id: int) -> None:
        if (call := self._waiting.pop(task_id, None)) is None:  # it was cancelled
            return
        try:
            self._actor.run_call(call)
        except BaseException as error:
            _end_unanswered(error)


class _Loop:
    """Runs an actor's calls as coroutines; a thread brings them as they come."""

    def __init__(self, actor: ActorProcess, code: ActorCode) -> None:
        import asyncio

        self._actor = actor
        self._limits = [
            asyncio.Semaphore(size) for size in (code.max_concurrency, *code.groups)
        ]
        self._loop = new_loop(actor.node)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._rooms: dict[int, asyncio.Event] = {}  # of streams that wait
        self._no_more = False  # calls

    def run(self) -> None:
        import asyncio

        self._actor.runs_many()
        self._actor._worker.engine.is_async = True
        asyncio.set_event_loop(self._loop)
        threading.Thread(target=self._bring, name="skate-calls", daemon=True).start()
        # No task of ours waits for the end: the program may cancel all that it finds.
        while self._tasks or not self._no_more:
            self._run_forever()
        self._clean_up()

    def _run_forever(self) -> None:
        try:
            self._loop.run_forever()
        except SystemExit as error:  # of a task that the program has started
            self._actor._worker.ends_for(error)

    def _bring(self) -> None:
        node, tell = self._actor.node, self._loop.call_soon_threadsafe
        with contextlib.suppress(RuntimeError):  # the program has closed the loop
            while (call := node.next_task()) is not None:
                tell(self._start, call)
                del call
            tell(self._end)
            # Calls that still run may be cancelled, and their streams read.
            while (call := node.next_notice()) is not None:
                tell(self._start, call)
                del call

    def _end(self) -> None:
        self._no_more = True
        if not self._tasks:
            self._loop.stop()

    def _clean_up(self) -> None:
        """Let what the program has left on the loop end, but not wait for good.

        What the actor holds is given back when its process ends: that is not held up by
        a thread that blocks, or by a task that will not be cancelled.
        """
        import asyncio

        loop = self._loop
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()

        async def end() -> None:
            if left:
                await asyncio.wait(left)
            await loop.shutdown_asyncgens()
            await loop.shutdown_default_executor()

        ending = loop.create_task(end())
        ending.add_done_callback(lambda _: loop.stop())
        loop.call_later(_CLEAN_UP_S, loop.stop)
        self._run_forever()

    def _start(self, call: _core.Call) -> None:
        task_id = call.task_id
        if call.notice:
            self._notice(call.notice, task_id)
            return
        task = self._loop.create_task(self._limited(call))
        self._tasks[task_id] = task

        def ended(task: asyncio.Task[None]) -> None:
            if self._tasks.get(task_id) is task:  # else the next attempt has begun
                del self._tasks[task_id]
                self._rooms.pop(task_id, None)
            if self._no_more and not self._tasks:
                self._loop.stop()
            if task.cancelled():  # perhaps before its first step
                call.fail_cancelled()
            elif (error := task.exception()) is not None:
                _end_unanswered(error)

        task.add_done_callback(ended)

    def _notice(self, kind: int, task_id: int) -> None:
        if kind == _CANCELLED:
            if (task := self._tasks.get(task_id)) is not None:
                task.cancel()
        elif task_id in self._rooms:
            self._rooms[task_id].set()

    async def _room(self, task_id: int) -> None:
        import asyncio

        event = self._rooms.setdefault(task_id, asyncio.Event())
        await event.wait()
        event.clear()

    async def _limited(self, call: _core.Call) -> None:
        async with self._limits[call.group]:
            if not self._actor.leaving:
                await self._actor.run_call_async(call, lambda: self._room(call.task_id))


def _end_unanswered(error: BaseException) -> None:
    """A call cannot be answered: its caller learns it from the process's end."""
    try:
        traceback.print_exception(error)
        sys.stderr.flush()
    finally:
        os._exit(1)


def _describe(error: BaseException, name: str) -> str:
    loaded = serialize.load_error(serialize.dump_error(error, name))
    cause = loaded.__cause__
    return f"{loaded}\n{cause}" if cause is not None else str(loaded)
