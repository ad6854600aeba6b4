"""What runs inside Ray's worker processes: a skate function or actor, called by Ray."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import ray
import ray.actor

from ... import _runtime
from .. import serialize
from ..actor_methods import BUILT_IN_METHODS, ActorExit, find_method
from . import messages, ship

if TYPE_CHECKING:
    from collections.abc import Callable

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

    def __init__(self, home: Home, name: str, packed: serialize.Packed) -> None:
        self.home = home
        self.name = name
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


def run(home: Home, name: str, body: Callable[[RayEngine], T]) -> T:
    """What ``body`` returns; what it raises comes to Ray as TaskFailed."""
    engine = home.engine()
    token = engine.task_name.set(name)
    try:
        return body(engine)
    except ActorExit:
        ray.actor.exit_actor()
    except Exception as error:
        failure = TaskFailed(serialize.dump_error(error, name, keeps_refs=False))
    finally:
        engine.task_name.reset(token)
    # Not from within the handler: the frames of the error would hold its arguments.
    raise failure


def pack_result(
    engine: RayEngine, result: Any, num_returns: int, name: str
) -> messages.Message | list[messages.Message] | None:
    """What a task returned, as one message, or as a list of ``num_returns`` of them."""
    packed = [
        messages.pack(serialize.dumps(value, f"what {name} returned"), engine)
        for value in serialize.split_returns(result, num_returns, name)
    ]
    return packed[0] if num_returns == 1 else packed or None


# Tasks -----------------------------------------------------------------------------


def make_task(code: Code) -> Callable[..., Any]:
    """A function for ``ray.remote`` that runs ``code``."""

    def task(message: messages.Message, *dependencies: messages.Message) -> Any:
        def body(engine: RayEngine) -> Any:
            function = code.load(engine, message)
            call = messages.unpack_call(message, dependencies, engine)
            result = function(*call.args, **call.kwargs)
            return pack_result(engine, result, call.num_returns, code.name)

        return run(code.home, code.name, body)

    task.__name__ = task.__qualname__ = code.name.rpartition(".")[2]
    return task


# Actors ----------------------------------------------------------------------------


class Body:
    """An actor as Ray sees it: holds the user's object, has a stub for each method."""

    _skate_code: ClassVar[Code]

    def __init__(
        self, message: messages.Message, *dependencies: messages.Message
    ) -> None:
        code = self._skate_code

        def construct(engine: RayEngine) -> Any:
            cls = code.load(engine, message)
            call = messages.unpack_call(message, dependencies, engine)
            return cls(*call.args, **call.kwargs)

        self._skate_object = run(code.home, f"{code.name}.__init__", construct)


def make_actor(code: Code, spec: ActorSpec) -> type:
    """A class for ``ray.remote`` whose instances run ``code``."""
    name = spec.cls.__name__
    stub = _async_stub if spec.is_async else _stub
    methods = (*spec.interface.methods, *BUILT_IN_METHODS)
    members: dict[str, Any] = {
        stub_name(method): stub(name, method) for method in methods
    }
    module = {"__module__": spec.cls.__module__, "_skate_code": code}
    return type(name, (Body,), members | module)


def stub_name(method: str) -> str:
    """The name under which Ray finds ``method``; it has some of its own."""
    return f"skate{method}" if method in BUILT_IN_METHODS else method


def _stub(class_name: str, method: str) -> Callable[..., Any]:
    name = f"{class_name}.{method}"

    def call_method(
        self: Body, message: messages.Message, *dependencies: messages.Message
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
        self: Body, message: messages.Message, *dependencies: messages.Message
    ) -> Any:
        engine = self._skate_code.home.engine()
        engine.task_name.set(name)  # each call has a context of its own
        try:
            function = find_method(self._skate_object, method)
            call = messages.unpack_call(message, dependencies, engine)
            result = function(*call.args, **call.kwargs)
            if inspect.isawaitable(result):
                result = await result
            return pack_result(engine, result, call.num_returns, name)
        except ActorExit:
            ray.actor.exit_actor()
        except Exception as error:
            failure = TaskFailed(serialize.dump_error(error, name, keeps_refs=False))
        raise failure

    call_method.__name__ = stub_name(method)
    return call_method
