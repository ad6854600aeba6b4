"""What the engine runs: a call with its arguments, from submission to its results."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..._ref import ObjectRef
from ...exceptions import OwnerDiedError
from .. import serialize
from ..protocol import TaskContext
from .baton import Stopped, context, holding, this_worker
from .objects import Stored
from .resources import Grant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ..._options import ActorOptions, TaskOptions
    from .baton import Home
    from .engine import InlineEngine
    from .objects import Entry


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
            assert isinstance(cause, Exception)
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
    ) -> None:
        self.engine = engine
        self.name = name
        self.home = home
        self.demand = demand
        self.outputs = [engine.new_id() for _ in range(num_returns)]
        self._num_returns = num_returns
        self.task_id = engine.new_id()
        self.trace_id = self.outputs[0] if self.outputs else self.task_id
        self.label = name  # in statistics
        self.thread = 0  # that runs it
        self._began: tuple[int, int] | None = None
        self._recorded = False
        self.actor_id = 0
        self.missing = 0  # arguments that have no value yet
        self.failure: bytes | None = None  # of an argument: the call does not run
        # A debugger that watches the caller should see this call, wherever it runs.
        self._trace = sys.gettrace()
        self._arguments: Arguments | None = arguments
        self._grant = Grant(engine.resources, demand)

    # Until it can start; the lock is held --------------------------------------------

    def await_arguments(self, ready: Callable[[], None]) -> None:
        """Call ``ready`` once every ref among the arguments has a value or an error."""
        assert self._arguments is not None
        for _, ref in self._arguments.refs:
            entry = self.engine.objects[ref]
            if entry.ready:
                self.failure = self.failure or entry.error
            else:
                self.missing += 1
                entry.callbacks.append(lambda entry: self._argument_came(entry, ready))
        if not self.missing:
            ready()

    def _argument_came(self, entry: Entry, ready: Callable[[], None]) -> None:
        self.missing -= 1
        self.failure = self.failure or entry.error
        if not self.missing:
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
        outcome: list[Stored] | bytes = b""
        try:
            refusal = self.refusal()
            if refusal is not None:
                outcome = refusal
                return
            with self._surroundings(self._grant):
                outcome = self.store(self.execute())
        except Stopped:
            outcome = self.stopped_error()
            raise
        except KeyboardInterrupt as error:
            outcome = serialize.dump_error(error, self.name)
            raise
        except BaseException as error:  # all of it is the task's result
            outcome = self.failed(error)
        finally:
            self.finish(outcome)

    @contextmanager
    def _surroundings(self, lent_when_blocked: Grant | None) -> Iterator[None]:
        own_thread = this_worker() is not None
        traced = own_thread and self._trace is not None and sys.gettrace() is None
        token = context.set(self.context())
        if traced:
            sys.settrace(self._trace)
        try:
            with holding(lent_when_blocked):
                yield
        finally:
            if traced:
                sys.settrace(None)
            context.reset(token)

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
        loaded = self._arguments.load(self.engine)
        self._arguments = None
        return loaded

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
        for index, output in enumerate(outputs):
            part = outcome if isinstance(outcome, bytes) else outcome[index]
            self.engine.objects.resolve(output, part)


class Task(Call):
    """A call of a remote function."""

    anywhere = True

    def __init__(
        self,
        engine: InlineEngine,
        name: str,
        function: Exported,
        arguments: Arguments,
        num_returns: int,
    ) -> None:
        home = engine.baton.tasks
        super().__init__(engine, name, arguments, num_returns, home, function.demand)
        self._function = function

    def post(self) -> None:
        """Start it when its turn comes; the arguments are there."""
        if self.failure is not None:
            self.fulfil(self.failure)
        else:
            self.engine.baton.post(self)

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
