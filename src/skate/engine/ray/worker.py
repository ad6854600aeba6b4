"""What runs inside Ray's worker processes: a skate function or actor, called by Ray."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import pickle
import sys
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import cloudpickle
import ray
import ray.actor

from ... import _runtime
from ..._ref import ObjectRef
from .. import serialize
from ..actor_methods import BUILT_IN_METHODS, ActorExit, find_method
from ..receiving import LoopReceiver
from . import messages, ship

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator

    from ..protocol import ActorSpec, EngineConfig
    from .engine import RayEngine

T = TypeVar("T")


class TaskFailed(Exception):
    """How user code failed, as ``serialize.dump_error`` says it; Ray carries it."""

    def __init__(self, data: bytes) -> None:
        data = bytes(data)  # not the subclass: it has no refs to bring
        super().__init__(data)
        self.data = data

    def __str__(self) -> str:
        error = serialize.load_error(self.data)
        return str(getattr(error, "remote_traceback", error))


def _failed(error: Exception, name: str) -> TaskFailed:
    return TaskFailed(serialize.dump_error(error, name, keeps_refs=False))


class MayRetry(TaskFailed):
    """The same, of an error after which the task's options let it run again."""


@dataclass(frozen=True)
class Home:
    """The session in which code was made: what a worker needs to join it."""

    session: str
    config: EngineConfig
    path: tuple[str, ...]  # where the driver finds the modules that it imports

    def engine(self) -> RayEngine:
        """The engine of this worker process, in this session."""
        engine: Any = _runtime.worker_engine()
        if engine is None or engine.session != self.session:
            from .engine import RayEngine

            found = [path for path in self.path if os.path.isdir(path)]
            for path in (*ship.shipped_path(), *found):
                if path not in sys.path:
                    sys.path.append(path)
            for module in self.config.preload:
                importlib.import_module(module)
            engine = RayEngine(self, is_driver=False)
            _runtime.set_worker_engine(engine)
        here: RayEngine = engine
        return here


class Code:
    """A function or a class on its way to workers, which load it when it is called."""

    def __init__(
        self,
        home: Home,
        name: str,
        packed: serialize.Packed,
        retry: bool | tuple[type[Exception], ...] = False,
    ) -> None:
        self.home = home
        self.name = name
        # As bytes: where it is unpickled, the user's modules may not be found yet.
        self._retry = retry if isinstance(retry, bool) else cloudpickle.dumps(retry)
        self._header = packed.header
        self._buffers = [buffer.raw().tobytes() for buffer in packed.buffers]
        self._holds_refs = bool(packed.refs)
        self._loaded: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_loaded": None}

    def load(self, engine: RayEngine, message: messages.Message) -> Any:
        """The function or class; refs that it captured come with each call."""
        if self._loaded is not None:
            return self._loaded
        if self._holds_refs:
            with engine.receiving(message[2]):
                # Not kept: it would keep those refs alive as long as this process.
                return serialize.loads(self._header, self._buffers)
        self._loaded = serialize.loads(self._header, self._buffers)
        return self._loaded

    def failure(self, error: Exception) -> TaskFailed:
        """What Ray gets to see of what user code raised."""
        retry = self._retry
        if isinstance(retry, bytes):
            retry = isinstance(error, pickle.loads(retry))
        data = serialize.dump_error(error, self.name, keeps_refs=False)
        return MayRetry(data) if retry else TaskFailed(data)


def run(
    home: Home,
    name: str,
    body: Callable[[RayEngine], T],
    failed: Callable[[Exception], TaskFailed] | None = None,
) -> T:
    """What ``body`` returns; what it raises comes to Ray as TaskFailed."""
    engine = home.engine()
    token = engine.task_name.set(name)
    try:
        return body(engine)
    except (ActorExit, SystemExit):
        _leave()
    except Exception as error:
        failure = failed(error) if failed else _failed(error, name)
    finally:
        engine.task_name.reset(token)
    # Not from within the handler: the frames of the error would hold its arguments.
    raise failure


def _leave() -> None:
    """End the actor that runs here, on purpose; of a task, the process."""
    if not ray.get_runtime_context().get_actor_id():
        raise SystemExit
    ray.actor.exit_actor()


def pack_result(
    engine: RayEngine, result: Any, num_returns: int, name: str
) -> messages.Message | list[messages.Message] | None:
    """What a task returned, as one message, or as a list of ``num_returns`` of them."""
    if num_returns == 1 and type(result) in _PLAIN:  # most often; as dumps would
        header = pickle.dumps(result, 5)
        if len(header) <= messages.LARGE:
            return header
        return messages.pack(serialize.Packed(header, [], []), engine)
    packed = [
        messages.pack(serialize.dumps(value, f"what {name} returned"), engine)
        for value in serialize.split_returns(result, num_returns, name)
    ]
    return packed[0] if num_returns == 1 else packed or None


_PLAIN = {type(None), bool, int, float, str, bytes}


# Streams ---------------------------------------------------------------------------

STREAM = "skate_stream"  # the method of every actor that streams what another yields


def produce(
    home: Home,
    name: str,
    begin: Callable[[RayEngine], Any],
    failed: Callable[[Exception], TaskFailed] | None = None,
) -> Iterator[Any]:
    """The messages of what the generator that ``begin`` makes yields."""
    engine = home.engine()
    token = engine.task_name.set(name)
    try:
        items = _check_generator(name, begin(engine))
        try:
            for value in items:
                yield _pack_item(engine, value, name)
                if engine.is_cancelled():  # in a method: nothing interrupts it
                    return
        except GeneratorExit:
            # Ray was interrupted while it waited for somebody to read; say so there.
            with suppress(KeyboardInterrupt, StopIteration):
                items.throw(KeyboardInterrupt())
            raise
        finally:
            items.close()
    except (ActorExit, SystemExit):
        _leave()
    except Exception as error:
        failure = failed(error) if failed else _failed(error, name)
    else:
        return
    finally:
        engine.task_name.reset(token)
    raise failure


async def produce_async(
    home: Home, name: str, begin: Callable[[RayEngine], Any]
) -> AsyncGenerator[Any, None]:
    """The same on the loop of an async actor, which other calls share."""
    engine = home.engine()
    engine.task_name.set(name)
    try:
        items = begin(engine)
        if inspect.isasyncgen(items):
            try:
                async for value in items:
                    yield _pack_item(engine, value, name)
            finally:
                await items.aclose()
        else:
            items = _check_generator(name, items)
            try:
                for value in items:
                    yield _pack_item(engine, value, name)
                    await asyncio.sleep(0)
            finally:
                items.close()
    except (ActorExit, SystemExit):
        _leave()
    except Exception as error:
        failure = _failed(error, name)
    else:
        return
    raise failure


def _check_generator(name: str, items: Any) -> Any:
    if inspect.isgenerator(items):
        return items
    raise TypeError(
        f"{name} was called with num_returns='streaming' and must be a generator; it "
        f"returned {type(items).__name__}."
    )


def _pack_item(engine: RayEngine, value: Any, name: str) -> messages.Message:
    return messages.pack(serialize.dumps(value, f"what {name} yielded"), engine)


# Tasks -----------------------------------------------------------------------------


def make_task(code: Code) -> Callable[..., Any]:
    """A function for ``ray.remote`` that runs ``code``."""

    def task(message: messages.Message = None, *dependencies: messages.Message) -> Any:
        def body(engine: RayEngine) -> Any:
            function = code.load(engine, message)
            call = messages.unpack_call(message, dependencies, engine)
            result = function(*call.args, **call.kwargs)
            return pack_result(engine, result, call.num_returns, code.name)

        return run(code.home, code.name, body, code.failure)

    return _named(task, code)


def make_stream(code: Code) -> Callable[..., Any]:
    """The same for a generator, which Ray is to read item by item."""

    def stream(
        message: messages.Message = None, *dependencies: messages.Message
    ) -> Iterator[Any]:
        def begin(engine: RayEngine) -> Any:
            function = code.load(engine, message)
            call = messages.unpack_call(message, dependencies, engine)
            return function(*call.args, **call.kwargs)

        yield from produce(code.home, code.name, begin, code.failure)

    return _named(stream, code)


def _named(function: Callable[..., Any], code: Code) -> Callable[..., Any]:
    function.__name__ = function.__qualname__ = code.name.rpartition(".")[2]
    return function


# Actors ----------------------------------------------------------------------------


class Body:
    """An actor as Ray sees it: holds the user's object, has a stub for each method."""

    _skate_code: ClassVar[Code]
    _skate_interface: ClassVar[bytes]  # pickled: it may name modules of the program's
    _skate_receiver_name: ClassVar[str | None]

    def __init__(
        self, message: messages.Message = None, *dependencies: messages.Message
    ) -> None:
        code = self._skate_code

        def construct(engine: RayEngine) -> Any:
            engine.own_interface = self._skate_interface
            cls = code.load(engine, message)
            call = messages.unpack_call(message, dependencies, engine)
            return cls(*call.args, **call.kwargs)

        self._skate_object = run(code.home, f"{code.name}.__init__", construct)
        self._skate_receiver: LoopReceiver | None = None
        if self._skate_receiver_name is not None:
            self._skate_receiver = LoopReceiver(
                self._skate_object, self._skate_receiver_name
            )


def make_actor(code: Code, spec: ActorSpec) -> type:
    """A class for ``ray.remote`` whose instances run ``code``."""
    name = spec.cls.__name__
    stub = _async_stub if spec.is_async else _stub
    methods = (*spec.interface.methods, *BUILT_IN_METHODS)
    members: dict[str, Any] = {}
    for method in methods:
        ray_name = stub_name(method)
        members[ray_name] = stub(name, method)
        plain = without_arguments(ray_name)
        members[plain] = _take_no_arguments(stub(name, method), plain)
    members[STREAM] = _async_stream(name) if spec.is_async else _stream(name)
    own = {
        "__module__": spec.cls.__module__,
        "_skate_code": code,
        "_skate_interface": serialize.dumps(spec.interface).header,
        "_skate_receiver_name": spec.receiver,
    }
    return type(name, (Body,), members | own)


def stub_name(method: str) -> str:
    """The name under which Ray finds ``method``; it has some of its own."""
    return f"skate{method}" if method in BUILT_IN_METHODS else method


NO_ARGUMENTS = "()"


def without_arguments(stub: str) -> str:
    """The name of the same method as Ray calls it without arguments."""
    return stub + NO_ARGUMENTS


def _take_no_arguments(stub: Callable[..., Any], name: str) -> Callable[..., Any]:
    """``stub`` as a method that takes nothing: Ray then binds no arguments to it."""
    stub.__name__ = name
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    stub.__signature__ = inspect.Signature([self])  # type: ignore[attr-defined]
    return stub


def _stub(class_name: str, method: str) -> Callable[..., Any]:
    name = f"{class_name}.{method}"

    def call_method(
        self: Body, message: messages.Message = None, *dependencies: messages.Message
    ) -> Any:
        def body(engine: RayEngine) -> Any:
            function = find_method(self._skate_object, method)
            call = messages.unpack_call(message, dependencies, engine)
            result = function(*call.args, **call.kwargs)
            return pack_result(engine, result, call.num_returns, name)

        return run(self._skate_code.home, name, body)

    call_method.__name__ = stub_name(method)
    return call_method


def _async_stub(class_name: str, method: str) -> Callable[..., Any]:
    name = f"{class_name}.{method}"

    async def call_method(
        self: Body, message: messages.Message = None, *dependencies: messages.Message
    ) -> Any:
        engine = self._skate_code.home.engine()
        engine.task_name.set(name)  # each call has a context of its own
        try:
            receiver = self._skate_receiver
            if receiver is not None and method not in BUILT_IN_METHODS:
                call = messages.unpack_call(message, dependencies, engine)
                result = await receiver.accept(method, call.args, call.kwargs)
                return pack_result(engine, result, call.num_returns, name)
            function = find_method(self._skate_object, method)
            call = messages.unpack_call(message, dependencies, engine)
            result = function(*call.args, **call.kwargs)
            if inspect.isawaitable(result) and not isinstance(result, ObjectRef):
                result = await result
            return pack_result(engine, result, call.num_returns, name)
        except (ActorExit, SystemExit):
            _leave()
        except Exception as error:
            failure = _failed(error, name)
        raise failure

    call_method.__name__ = stub_name(method)
    return call_method


def _begin(
    actor: Body,
    method: str,
    message: messages.Message,
    dependencies: tuple[messages.Message, ...],
) -> Callable[[RayEngine], Any]:
    def begin(engine: RayEngine) -> Any:
        function = find_method(actor._skate_object, method)
        call = messages.unpack_call(message, dependencies, engine)
        return function(*call.args, **call.kwargs)

    return begin


def _stream(class_name: str) -> Callable[..., Any]:
    def stream(
        self: Body,
        method: str,
        message: messages.Message = None,
        *dependencies: messages.Message,
    ) -> Iterator[Any]:
        begin = _begin(self, method, message, dependencies)
        yield from produce(self._skate_code.home, f"{class_name}.{method}", begin)

    stream.__name__ = STREAM
    return stream


def _async_stream(class_name: str) -> Callable[..., Any]:
    async def stream(
        self: Body,
        method: str,
        message: messages.Message = None,
        *dependencies: messages.Message,
    ) -> AsyncIterator[Any]:
        begin = _begin(self, method, message, dependencies)
        home = self._skate_code.home
        async with aclosing(
            produce_async(home, f"{class_name}.{method}", begin)
        ) as items:
            async for item in items:
                yield item

    stream.__name__ = STREAM
    return stream
