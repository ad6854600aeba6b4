"""A worker process: takes tasks from the core, runs them, hands back what they return.

A pool worker and a leased one run functions; what an actor's process does is in
``actor_worker``.
"""

from __future__ import annotations

import _thread
import contextlib
import faulthandler
import functools
import gc
import os
import pickle
import signal
import socket
import sys
import time
import traceback
import types
from collections.abc import Callable
from typing import Any, NoReturn

from ... import _core, _ref, _runtime
from ...exceptions import RuntimeEnvSetupError
from .. import serialize
from ..actor_methods import ActorExit
from ..protocol import label_of
from ..surroundings import Surroundings
from . import leftovers, wire
from .actor_worker import ActorProcess
from .company import has_company
from .engine import EmbeddedEngine
from .output import redirect_worker
from .processes import RETIRE
from .retries import unpack_types
from .streaming import check_generator

_MAX_CACHED_FUNCTIONS = 512
_LOOK_AGAIN_S = 0.02
_MT_WORDS = 624  # the state of NumPy's global generator
# Tells a worker that its task was cancelled: none that programs use for themselves.
_INTERRUPT = signal.SIGRTMIN + 7


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
    is_leased = not (order["is_pool"] or order["actor_id"])
    if is_leased:  # before there are threads, which all have this from here
        signal.pthread_sigmask(signal.SIG_BLOCK, [RETIRE])
    node = _core.Node(
        session_fd=os.dup(session_fd),
        segment_fd=segment_fd,
        supervisor_fd=supervisor_fd,
        index=order["index"],
        epoch=order["epoch"],
        is_pool=order["is_pool"],
    )
    os.close(session_fd)
    refusal = _enter_runtime_env(settings, order)
    leftovers.mark_worker()
    node.report_blocking(order["counts_cpus"])
    engine = EmbeddedEngine(
        node, settings["config"], settings["session_id"], is_driver=False
    )
    engine.env, engine.gpu_ids = order["runtime_env"], order["gpus"]
    _runtime.set_worker_engine(engine)
    worker = Worker(engine, refusal)
    if not order["actor_id"]:
        _let_cancel_interrupt(node)
    redirect_worker(printed, worker.printing_name)
    _stop_breakpoints_in_driver(worker)
    faulthandler.enable(sys.stderr.fileno())  # a crash says where
    if is_leased:
        _thread.start_new_thread(_end_when_told, (worker,))
    node.tell(pickle.dumps(("ready",)))
    status = 0
    actor = None
    try:
        if order["actor_id"]:
            engine.num_restarts = order["num_restarts"]
            actor = ActorProcess(worker, order["actor_id"])
            actor.run()
        else:
            worker.run()
    except SystemExit as error:  # of the handler of a signal, between calls
        code = error.code
        status = code if isinstance(code, int) else int(code is not None)
    _run_exit_handlers()
    if actor is not None:
        # As where Python ends: its __del__ runs, and files that it has open are whole.
        actor.let_go()
        gc.collect()
        _flush()
    node.send_last_calls()
    node.close()  # after its last words
    return status


def _enter_runtime_env(
    settings: dict[str, Any], order: dict[str, Any]
) -> RuntimeEnvSetupError | None:
    """Set up what this process is for; what fails is told to its tasks."""
    if order["runtime_env"] == settings["config"].runtime_env and not order["gpus"]:
        failed: RuntimeEnvSetupError | None = settings["refusal"]
        return failed
    try:
        settings["surroundings"].leave()
        Surroundings(order["runtime_env"], order["gpus"]).enter()
    except RuntimeEnvSetupError as error:
        return error
    except OSError as error:  # the directory of the session is gone
        return RuntimeEnvSetupError(
            f"the session's runtime_env cannot be left: {error}."
        )
    return None


def _may_start(supervisor_fd: int) -> bool:
    """Wait until the supervisor knows of this process: False if it never will.

    If the zygote is killed before it has said whom it forked, the worker is forked
    again under the same name. The first one must not have read the second's messages.
    """
    sock = socket.socket(fileno=supervisor_fd)
    data, _ = wire.receive_first(sock)
    sock.detach()
    return bool(data)


def _start_afresh() -> None:
    """Undo what a forked child shares with the zygote."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's
    # Python's own `random` seeds itself anew in every forked child.
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy.random" in sys.modules:
        _seed_numpy(numpy)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.seed()


def _seed_numpy(numpy: Any) -> None:
    # All of the generator's words at random: half the time of seeding it.
    words = numpy.frombuffer(os.urandom(4 * _MT_WORDS), numpy.uint32)
    try:
        numpy.random.set_state(("MT19937", words, _MT_WORDS))
    except (TypeError, ValueError):  # a module has installed a generator of its own
        random = numpy.random
        try:
            fresh = type(random.get_bit_generator())()
        except Exception:  # it cannot be made so
            fresh = random.MT19937()
        random.set_bit_generator(fresh)


def _stop_breakpoints_in_driver(worker: Worker) -> None:
    def hook(*args: Any, **kwargs: Any) -> Any:
        if os.environ.get("PYTHONBREAKPOINT"):  # the user wants another debugger
            return sys.__breakpointhook__(*args, **kwargs)  # noqa: T100
        from . import debugger  # pdb takes long to import, and is rarely needed

        debugger.stop(worker.engine, worker.printing_name(), sys._getframe(1))
        return None

    sys.breakpointhook = hook


def _let_cancel_interrupt(node: _core.Node) -> None:
    """Let skate.cancel raise KeyboardInterrupt in user code, and only there."""
    bookkeeping = _ref.__file__

    def interrupted(number: int, frame: types.FrameType | None) -> None:
        # What is raised in a destructor, or in what it calls, is lost; and in the
        # middle of counting a ref, so is the count.
        while frame is not None:
            code = frame.f_code
            if code.co_name == "__del__" or code.co_filename == bookkeeping:
                node.postpone_interrupt()
                return
            frame = frame.f_back
        if node.take_interrupt():
            raise _cancelled()

    signal.signal(_INTERRUPT, interrupted)
    # There are more places where what is raised is lost: callbacks of weak references,
    # and of C code by ctypes. No frame tells them.
    sys.unraisablehook = functools.partial(node.on_unraisable, sys.unraisablehook)
    node.interrupt_by(_INTERRUPT)


def _cancelled() -> KeyboardInterrupt:
    """What the core knows again, should Python let go of it."""
    error = KeyboardInterrupt()
    vars(error)["_skate_cancelled"] = True
    return error


def _end_when_told(worker: Worker) -> None:
    signal.sigwait([RETIRE])
    worker.wait_until_nothing_ends_with_it()
    worker.node.stop_serving()


def _run_exit_handlers() -> None:
    import atexit

    atexit._run_exitfuncs()
    _flush()


class Worker:
    """Loads code, runs one call, and reports how it ended."""

    def __init__(
        self, engine: EmbeddedEngine, refusal: RuntimeEnvSetupError | None
    ) -> None:
        self.engine = engine
        self.node = engine.node
        self.refusal = refusal  # why nothing can run here
        self._functions: dict[int, Code] = {}
        # Of those, what the core may call by itself.
        self._plain: dict[int, tuple[Callable[..., Any], str]] = {}
        self.leave: Callable[[], None] | None = None  # of an actor: end on purpose
        self.is_worn_out = False  # a function has been called max_calls times
        self.title = ""  # of an actor's process: its class

    def printing_name(self) -> str:
        """For people who read what this thread prints: its actor, or its task."""
        name = self.title or self.engine.context_var.get()[2]
        return name.rpartition(".")[2] or "worker"

    def run(self) -> None:
        node, context = self.node, self.engine.context_var
        company = functools.partial(has_company, node)
        while (
            call := node.serve(self._plain, context, self._plain_failed, company)
        ) is not None:
            self.run_task(call)
            del call  # the task's arguments go before the next one is waited for
            if self.is_worn_out:
                self.node.take_no_more()
                gc.collect()  # cycles may hold actors and streams
                self.wait_until_nothing_ends_with_it()
                return

    def wait_until_nothing_ends_with_it(self) -> None:
        while self.node.has_dependants():
            time.sleep(_LOOK_AGAIN_S)

    def run_task(self, call: _core.Call) -> None:
        if self.refusal is not None:
            call.fail(serialize.dump_system_error(self.refusal), [], False)
            return
        name = "task"
        try:
            code = self.load(call)
            name = call.method or code.name
            args, kwargs = call.arguments()
        except BaseException as error:
            self.fail(call, error, name)
            return
        if code.max_calls:
            code.calls += 1
            if code.calls >= code.max_calls and not self.is_worn_out:
                self.is_worn_out = True
                self.node.wear_out()
        token = self.engine.context_var.set((call.task_id, 0, name))
        try:
            result = call.run(code.function, args, kwargs)
            del args, kwargs
            if call.is_streaming:
                check_generator(result, name)
                call.stream(result, True)
                result = None
            self.encode(call, result, name)
            del result  # what only the result holds goes to the task's owner
            call.send()
        except BaseException as error:
            self.fail(call, error, name, code.retry_on)
        finally:
            self.engine.context_var.reset(token)

    def _plain_failed(self, call: _core.Call, error: BaseException) -> None:
        code = self._functions[call.function_id]
        self.fail(call, error, code.name, code.retry_on)

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
            if call.is_streaming:
                check_generator(result, name)
                call.stream(result, False)
                result = None
            self.encode(call, result, name)
            del result
            call.send()
        except BaseException as error:
            self.fail(call, error, name, self.retry_on(call))
        finally:
            self.engine.context_var.reset(token)

    def encode(self, call: _core.Call, result: Any, name: str) -> None:
        returns = call.num_returns
        if returns == 1:
            call.encode([result])
        else:
            call.encode(serialize.split_returns(result, returns, name))

    def fail(
        self,
        call: _core.Call,
        error: BaseException,
        name: str,
        retry_on: bool | tuple[type[Exception], ...] = False,
    ) -> None:
        if self.ends_for(error):
            return  # the caller learns it from the actor's end
        if isinstance(error, KeyboardInterrupt) and call.cancelled:
            call.fail_cancelled()
            return
        retryable = isinstance(
            error, Exception if isinstance(retry_on, bool) else retry_on
        )
        retryable = retryable and retry_on is not False
        failure = serialize.dump_error(error, name)
        try:
            call.fail(bytes(failure), list(failure.refs), retryable)
        except Exception:  # there is no room for all that the exception holds
            failure = serialize.dump_error_in_short(error, name)
            call.fail(bytes(failure), [], retryable)

    def ends_for(self, error: BaseException) -> bool:
        """Whether the actor ends for what its code has raised; the process may at once.

        As in Ray, a task that exits ends its worker.
        """
        if self.node.in_forked_child:
            end_forked_child(error)
        meant = isinstance(error, SystemExit) and error.code in (None, 0)
        if self.leave is not None and (meant or isinstance(error, ActorExit)):
            self.leave()
            return True
        if isinstance(error, SystemExit):
            _flush()
            os._exit(error.code if isinstance(error.code, int) else 1)
        return False

    @staticmethod
    def retry_on(call: _core.Call) -> bool | tuple[type[Exception], ...]:
        """Errors after which a call of an actor should be tried again."""
        packed = call.retry_on
        if packed in (b"", b"*"):
            return packed == b"*"
        return unpack_types(packed)

    def load(self, call: _core.Call) -> Code:
        key = call.function_id
        code = self._functions.get(key)
        if code is None:
            code = Code(call.function_code())
            self.node.name_function(key, label_of(code.function))
            # Code that holds refs would keep them alive for as long as it is cached.
            if not call.function_holds_refs:
                if len(self._functions) >= _MAX_CACHED_FUNCTIONS:
                    oldest = next(iter(self._functions))
                    del self._functions[oldest]
                    self._plain.pop(oldest, None)
                self._functions[key] = code
                if not code.max_calls:
                    self._plain[key] = code.function, code.name
        return code


class Code:
    """A function, or an actor's class, and what its options say of running it."""

    def __init__(self, exported: bytes) -> None:
        header, buffers, extra = pickle.loads(exported)
        self.function: Any = serialize.loads(header, buffers)
        self.name: str = getattr(self.function, "__qualname__", "task")
        self.max_calls: int
        retry_on, self.max_calls = extra or (False, 0)
        if isinstance(retry_on, bytes):
            retry_on = unpack_types(retry_on)
        self.retry_on: bool | tuple[type[Exception], ...] = retry_on
        self.calls = 0


def end_forked_child(error: BaseException) -> NoReturn:
    """A child that a task has forked raised: its parent answers for the task."""
    status = 1
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    elif error.code is None or isinstance(error.code, int):
        status = error.code or 0
    _flush()
    os._exit(status)


def _flush() -> None:
    """What is in the streams is printed; the process ends, whatever they are by now."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):  # the program may have closed it
            stream.flush()
