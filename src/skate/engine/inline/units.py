"""What the engine runs: a call with its arguments, from submission to its results."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any

from ..._exact import printable
from ..._options import STREAMING
from ..._ref import ObjectRef
from ..._runtime_env import NO_ENV
from ...exceptions import (
    OwnerDiedError,
    RuntimeEnvSetupError,
    TaskCancelledError,
    WorkerCrashedError,
)
from .. import serialize
from ..protocol import TaskContext
from ..surroundings import Surroundings
from .baton import Stopped, context, holding, this_worker
from .objects import Stored
from .resources import Grant
from .streams import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ..._options import ActorOptions, TaskOptions
    from .baton import Home, Wait
    from .engine import InlineEngine


CANCELLED = serialize.dump_system_error(
    TaskCancelledError("the task was cancelled by skate.cancel.")
)


class Arguments:
    """Arguments as bytes; the top-level refs among them apart, to be resolved."""

    def __init__(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.refs: list[tuple[int | str, ObjectRef[Any]]] = []
        plain_args = [self._without_ref(i, arg) for i, arg in enumerate(args)]
        plain = {key: self._without_ref(key, arg) for key, arg in kwargs.items()}
        try:
            packed = serialize.dumps((plain_args, plain))
        except TypeError as error:
            cause = error.__cause__
            if not isinstance(cause, Exception):  # of a signal's handler
                raise
            raise serialize.explain_arguments(name, plain_args, plain, cause) from cause
        self._stored = Stored.of(packed)

    @property
    def num_bytes(self) -> int:
        return self._stored.num_bytes

    def _without_ref(self, place: int | str, arg: Any) -> Any:
        if type(arg) is ObjectRef:
            self.refs.append((place, arg))
            return None
        return arg

    def load(self, engine: InlineEngine) -> tuple[list[Any], dict[str, Any]]:
        args: list[Any]
        kwargs: dict[str, Any]
        args, kwargs = engine.load(self._stored)
        for place, ref in self.refs:
            value = engine.load_ref(ref)
            if isinstance(place, int):
                args[place] = value
            else:
                kwargs[place] = value
        return args, kwargs


class Call:
    """A function with arguments whose results go to refs. A unit of the baton."""

    anywhere = False

    def __init__(
        self,
        engine: InlineEngine,
        name: str,
        arguments: Arguments,
        num_returns: int,
        home: Home,
        demand: Mapping[str, int],
        window: int = 0,
    ) -> None:
        self.engine = engine
        self.name = name = printable(name)
        self.home = home
        self.demand = demand
        streams = num_returns == STREAMING
        self._num_returns = 1 if streams else num_returns
        self.outputs = [engine.new_id() for _ in range(self._num_returns)]
        self.stream: Stream | None = None
        if streams:
            self.stream = engine.streams[self.outputs[0]] = Stream(engine, self, window)
        self.task_id = engine.new_id()
        self.trace_id = self.outputs[0] if self.outputs else self.task_id
        self.label = name  # in statistics
        self.thread = 0  # that runs it
        self._began: tuple[int, int] | None = None
        self._recorded = False
        self.parent = context.get().task_id  # the task that calls
        engine.unfinished[self.task_id] = self
        self.cancelled = False
        self._cancelled_with = CANCELLED  # what its refs get then
        self.started = False
        self.wait: Wait | None = None  # the skate call that blocks it, while it runs
        self.interrupted = False  # KeyboardInterrupt in its next skate call
        self._generator: Any = None
        self._num_items = 0
        self._throw = False  # KeyboardInterrupt into the generator, at its yield
        self.actor_id = 0
        self.missing = 0  # arguments that have no value yet
        self.failure: bytes | None = None  # of an argument: the call does not run
        # A debugger that watches the caller should see this call, wherever it runs.
        self._trace = sys.gettrace()
        self._arguments: Arguments | None = arguments
        self._grant = Grant(engine.resources, demand)
        self.env = NO_ENV
        self._retries = 0  # left; negative: any number
        self._retry_on: bool | tuple[type[Exception], ...] = False

    # Until it can start; the lock is held --------------------------------------------

    def await_arguments(self, ready: Callable[[], None]) -> None:
        """Call ``ready`` once every ref among the arguments has a value or an error."""
        assert self._arguments is not None
        for _, ref in self._arguments.refs:
            entry = self.engine.objects[ref]
            if not entry.ready:
                self.missing += 1
                entry.callbacks.append(lambda entry: self._argument_came(ready))
        if not self.missing:
            self._arguments_are_there(ready)

    def _argument_came(self, ready: Callable[[], None]) -> None:
        self.missing -= 1
        if not self.missing and self._arguments is not None:  # else it was withdrawn
            self._arguments_are_there(ready)

    def _arguments_are_there(self, ready: Callable[[], None]) -> None:
        # Of several that failed the first one counts, not the first to fail.
        errors = (self.engine.objects[ref].error for ref in self.argument_refs())
        self.failure = next(filter(None, errors), self.failure)
        ready()

    def argument_refs(self) -> list[ObjectRef[Any]]:
        arguments = self._arguments
        return [] if arguments is None else [ref for _, ref in arguments.refs]

    def startable(self) -> bool:
        if self.engine.groups.refusal(self.demand) is not None:
            return True  # to say no
        return self.engine.resources.fits(self.demand)

    def begin(self) -> None:
        self._grant.take()

    # While it runs ------------------------------------------------------------------

    def run(self) -> None:
        outcome: list[Stored] | bytes | None = b""
        self.started = True
        try:
            refusal = self.refusal()
            if refusal is not None:
                outcome = refusal
                return
            with self._surroundings(self._grant):
                outcome = self._advance()
        except Stopped:
            outcome = self.stopped_error()
            raise
        except KeyboardInterrupt as error:
            outcome = serialize.dump_error(error, self.name)
            if not self.cancelled:
                raise
            outcome = self._cancelled_with
        except RuntimeEnvSetupError as error:
            outcome = serialize.dump_system_error(error)
        except BaseException as error:  # all of it is the task's result
            outcome = None if self.tries_again(error) else self.failed(error)
        finally:
            if outcome is None:
                self._go_on_later()
            else:
                self.finish(outcome)

    def _advance(self) -> list[Stored] | None:
        """Run the call, or a generator up to its next yield; None if it goes on."""
        if self.stream is None:
            return self.store(self.execute())
        generator = self._generator
        if generator is None:
            generator = self.execute()
            self.check_generator(generator)
            self._generator = generator
        if self.stream.closed:
            generator.close()
            return self.store(None)
        try:
            if self._throw:
                self._throw = False
                item = generator.throw(KeyboardInterrupt())
            else:
                item = next(generator)
        except StopIteration:
            return self.store(None)
        try:
            self.send_item(item)
        except BaseException:
            generator.close()
            raise
        return None

    def check_generator(self, generator: Any) -> None:
        if not isinstance(generator, (GeneratorType, AsyncGeneratorType)):
            raise TypeError(
                f"{self.name} was called with num_returns='streaming' and must be a "
                f"generator; it returned {type(generator).__name__}."
            )

    def send_item(self, item: Any) -> None:
        assert self.stream is not None
        stored = Stored.of(serialize.dumps(item, f"an item of {self.name}"))
        with self.engine.lock:
            self.stream.add(self._num_items, stored)
        self._num_items += 1

    def _go_on_later(self) -> None:
        with self.engine.lock:
            self.pause()
            if self.stream is None or self.stream.has_room() or self._throw:
                self.engine.baton.post(self)
            else:
                self.stream.when_room(lambda: self.engine.baton.post(self))

    def pause(self) -> None:
        """Give back what ``begin`` took."""
        self._grant.give()

    def tries_again(self, error: BaseException) -> bool:
        """Whether the error is one to try again after. Counts the attempt."""
        kinds = self._retry_on
        if (
            kinds is False
            or self.cancelled
            or self._retries == 0
            or not isinstance(error, Exception if kinds is True else kinds)
        ):
            return False
        self._retries -= 1
        self._generator = None
        self._num_items = 0
        return True

    @contextmanager
    def _surroundings(self, lent_when_blocked: Grant | None) -> Iterator[None]:
        own_thread = this_worker() is not None
        traced = own_thread and self._trace is not None and sys.gettrace() is None
        token = context.set(self.context())
        if traced:
            sys.settrace(self._trace)
        try:
            with holding(lent_when_blocked, self, self._own_surroundings()):
                yield
        finally:
            if traced:
                sys.settrace(None)
            context.reset(token)

    def _own_surroundings(self) -> Surroundings | None:
        return Surroundings(self.env, self.gpus) or None

    @property
    def gpus(self) -> tuple[int | str, ...]:
        return self._grant.gpus.ids

    def context(self) -> TaskContext:
        worker_id = self.actor_id or 1  # tasks share a worker, each actor has its own
        return TaskContext(
            self.task_id, self.actor_id, worker_id, self.name, is_driver=False
        )

    def refusal(self) -> bytes | None:
        """The error with which it ends at once, if its placement group is gone."""
        return self.engine.groups.refusal(self.demand)

    def load_arguments(self) -> tuple[list[Any], dict[str, Any]]:
        assert self._arguments is not None
        size = self._arguments.num_bytes
        self._began = self.engine.record.started(self, size)
        self.thread = threading.get_ident()
        return self._arguments.load(self.engine)

    def execute(self) -> Any:
        """Call the user's code."""
        raise NotImplementedError

    def store(self, value: Any) -> list[Stored]:
        values = serialize.split_returns(value, self._num_returns, self.name)
        what = f"the result of {self.name}"
        return [Stored.of(serialize.dumps(value, what)) for value in values]

    def failed(self, error: BaseException) -> bytes:
        """What the refs of a call hold that raised ``error``."""
        return serialize.dump_error(error, self.name)

    def stopped_error(self) -> bytes:
        """What the refs of a call hold whose thread was told to end."""
        return serialize.dump_system_error(
            OwnerDiedError(
                f"task {self.name} was lost because the actor that called it died."
            )
        )

    def take_over(self, lost: Call) -> None:
        """Be the call that ``lost`` was an earlier attempt of."""
        del self.engine.unfinished[self.task_id]
        self.task_id, self.trace_id = lost.task_id, lost.trace_id
        self.parent, self.label = lost.parent, lost.label
        self.engine.unfinished[self.task_id] = self
        if self.stream is not None:
            del self.engine.streams[self.outputs[0]]
            self.stream, lost.stream = lost.stream, None
            assert self.stream is not None
            self.stream.producer = self
        self.outputs, lost.outputs = lost.outputs, []

    # Cancelling; the lock is held -----------------------------------------------------

    def cancel(self, outcome: bytes = CANCELLED) -> None:
        self.cancelled = True
        self._cancelled_with = outcome
        if not self.started and self.withdraw():
            self.fulfil(outcome)
        elif self.started:
            self.interrupt()

    def withdraw(self) -> bool:
        """Keep it from starting; False if it is too late."""
        return bool(self.missing) or self.engine.baton.withdraw(self)

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the user's code."""
        if self.wait is not None:
            self.engine.baton.interrupt(self.wait, KeyboardInterrupt())
        elif self.stream is not None:
            self._throw = True
            self.stream.wake()
        else:  # it runs: it has done this itself, or another thread of the driver
            self.interrupted = True

    def reader_gone(self) -> None:
        """Nobody reads the stream any more."""
        assert self.stream is not None
        if not self.started and self.withdraw():
            self.fulfil(CANCELLED)
        else:
            self.stream.wake()

    # When it has run ------------------------------------------------------------------

    def finish(self, outcome: list[Stored] | bytes) -> None:
        """Give the results, or the error, to the refs, and the resources back."""
        with self.engine.lock:
            self._grant.give()
            self.fulfil(outcome)

    def fulfil(self, outcome: list[Stored] | bytes) -> None:
        """Give the results, or the error, to the refs; once, the first time."""
        if not self._recorded:
            self._recorded = True
            failed = isinstance(outcome, bytes)
            parts = () if isinstance(outcome, bytes) else outcome
            size = sum(part.num_bytes for part in parts)
            self.engine.record.ended(self, self._began, failed, size)
        outputs, self.outputs = self.outputs, []
        self._arguments = None
        self._generator = None
        if self.engine.unfinished.get(self.task_id) is self:  # not a later attempt
            del self.engine.unfinished[self.task_id]
        for index, output in enumerate(outputs):
            part = outcome if isinstance(outcome, bytes) else outcome[index]
            self.engine.objects.resolve(output, part)
        if self.stream is not None and outputs:
            self.stream.end(failed=isinstance(outcome, bytes))


class Task(Call):
    """A call of a remote function."""

    anywhere = True

    def __init__(
        self,
        engine: InlineEngine,
        name: str,
        function: Exported,
        arguments: Arguments,
        options: TaskOptions,
    ) -> None:
        super().__init__(
            engine,
            name,
            arguments,
            options.num_returns,
            engine.baton.tasks,
            function.demand,
            options.window,
        )
        self._function = function
        self._retry_on = options.retry_exceptions
        self.env = engine.env_of(options)
        self._retries = options.max_retries

    def post(self) -> None:
        """Start it when its turn comes; the arguments are there."""
        if self.failure is not None:
            self.fulfil(self.failure)
        else:
            self.engine.baton.post(self)

    def group_removed(self) -> None:
        """The process of a task that runs would have ended; a retry is refused."""
        refusal = self.refusal()
        assert refusal is not None
        if self.started and not self._retries:
            text = f"the placement group of task {self.name} was removed."
            refusal = serialize.dump_system_error(WorkerCrashedError(text))
        self.cancel(refusal)

    def execute(self) -> Any:
        args, kwargs = self.load_arguments()
        function = self._function.load()
        return function(*args, **kwargs)


class Exported:
    """A function or class as workers see it: a copy, unless they would import it.

    Raises:
        TypeError: it cannot be pickled.
        ResourceError: its options ask for more than the session has.
    """

    def __init__(
        self,
        engine: InlineEngine,
        original: Any,
        name: str,
        options: TaskOptions | ActorOptions,
    ) -> None:
        self.engine = engine
        self.demand = engine.resources.demand(name, options)
        kind = "actor class" if isinstance(original, type) else "function"
        what = f"the {kind} {name}"
        self._stored = Stored.of(serialize.dumps_function(original, what))
        self._loaded: Any = None

    def load(self) -> Any:
        """The function; unpickled at its first call, as in a worker process."""
        if self._loaded is None:
            self._loaded = self.engine.load(self._stored)
        return self._loaded
