"""The engine as one process of a Ray cluster sees it: driver and workers alike."""

from __future__ import annotations

import os
import pickle
import threading
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

import ray

from ..._options import STREAMING
from ..._ref import ActorRef, ObjectRef, check_distinct, check_refs, restore_refs
from ..._runtime_env import RuntimeEnv, check_runtime_env
from ...exceptions import (
    ActorAlreadyExistsError,
    EngineError,
    GetTimeoutError,
    TaskCancelledError,
    TaskKilledError,
    TaskPlacementGroupRemoved,
)
from .. import serialize
from ..protocol import NamedActor, TaskContext
from . import (
    cancelling,
    directory,
    group,
    messages,
    placement,
    statistics,
    streams,
    tasks,
    translate,
    why,
    worker,
)
from .ids import CANCELLED, KILLED, ActorId, RefId, id_of, new_ref
from .observer import RayObserver
from .streams import Stream
from .waiting import Futures, RayWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    import numpy as np
    import numpy.typing as npt

    from ..._placement import GroupInfo
    from ..protocol import (
        ActorInfo,
        ActorSpec,
        Group,
        MethodSpec,
        Observer,
        TaskSpec,
    )


_ASK_RAY = (
    "a Ray cluster lists its tasks, objects and workers itself: 'ray list tasks', or "
    "ray.util.state."
)


class Exported:
    """A function or a class as Ray knows it."""

    def __init__(self, engine: RayEngine, start: Any, refs: Sequence[Any]) -> None:
        self.engine = engine
        self.start = start  # Ray's own ``.remote``
        self.captured = refs  # Ray refs and handles that the code holds


class Calls(NamedTuple):
    """What Ray calls for a method of one actor."""

    method: MethodSpec
    without: Any  # Ray's method for calls without arguments; None: as with them
    bound: Any  # for the others
    first: tuple[str, ...]  # goes before what a call has itself
    options: dict[str, Any]


class _Arriving(threading.local):
    """Ids in the message that this thread unpickles now."""

    ids: dict[int | bytes, RefId | ActorId]

    def __init__(self) -> None:
        self.ids = {}


class RayEngine:
    """See ``engine.protocol.Engine``."""

    name = "ray"

    def __init__(self, home: worker.Home, *, is_driver: bool) -> None:
        self.home = home
        self.session = home.session
        self.config = home.config
        self.node_id: str = ray.get_runtime_context().get_node_id()
        self.task_name: ContextVar[str] = ContextVar("skate_task", default="")
        self.began_ns = time.time_ns()
        self._is_driver = is_driver
        self._pid = os.getpid()
        self._closed = False
        self._restarts: int | None = None  # of the actor that this process is
        self.own_interface = b""  # of that actor, pickled
        self._arriving = _Arriving()
        self._futures = Futures(self)
        # Ends Ray, or the connection to it; None if it was there before the session.
        self.on_shutdown: Callable[[], None] | None = None
        self._actors: WeakSet[Any] = WeakSet()  # Ray handles of what was started here
        self._placements: set[str] = set()  # groups that were made here
        self._removed: set[str] = set()  # and those that were removed here

    def enter(self) -> None:
        """Every call starts here."""
        if self._closed:
            raise EngineError("skate has been shut down; call skate.init() again.")
        if os.getpid() != self._pid:
            raise EngineError(
                "this process was forked from one that uses skate, and cannot use it "
                "itself. Make the calls in the parent, or start skate here after "
                "starting the process by spawn."
            )

    # counting refs --------------------------------------------------------------------

    def release(self, ref_id: int, /) -> None:
        """Nothing: the id holds Ray's own ref, and goes with it."""

    def adopt(self, kind: type[ObjectRef[Any]], ref_id: int, /) -> ObjectRef[Any]:
        return kind._new(self._arriving.ids[ref_id], self)  # type: ignore[arg-type]  # no int

    def name_actor(self, ref_id: int, class_name: str, /) -> None:
        """Nothing: Ray knows the class."""

    @contextmanager
    def receiving(self, handles: Iterable[Any]) -> Iterator[None]:
        """While it is open, refs unpickled on this thread are those of ``handles``."""
        outer = self._arriving.ids
        self._arriving.ids = {one.key: one for one in map(id_of, handles)}
        try:
            with restore_refs(self):
                yield
        finally:
            self._arriving.ids = outer

    def handle(self, ref: ObjectRef[Any]) -> Any:
        """Ray's own ref, or actor handle, behind ``ref``."""
        return messages.handle_of(ref, self)

    # tasks ----------------------------------------------------------------------------

    def submit(
        self, spec: TaskSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[ObjectRef[Any]]:
        self.enter()
        exported = spec.exported
        if not isinstance(exported, Exported) or exported.engine is not self:
            exported = self._export_task(spec)
        if spec.options.placement is not None:
            self._check_group(spec.name, spec.options.placement.group)
        num_returns = spec.options.num_returns
        call = messages.pack_call(
            spec.name, args, kwargs, num_returns, self, exported.captured
        )
        return self._refs(exported.start(*call), num_returns)

    def _export_task(self, spec: TaskSpec) -> Exported:
        translate.check_demand(spec.name, spec.options)
        packed = serialize.dumps_function(spec.function, f"the function {spec.name}")
        retry = spec.options.retry_exceptions
        code = worker.Code(self.home, spec.name, packed, retry)
        streams = spec.options.num_returns == STREAMING
        make = worker.make_stream if streams else worker.make_task
        task: Any = ray.remote(**translate.task_options(spec.options, spec.name))(
            make(code)
        )
        exported = Exported(self, task.remote, self._handles(packed.refs))
        spec.exported = exported
        return exported

    def _handles(self, refs: list[ObjectRef[Any]]) -> list[Any]:
        return [self.handle(ref) for ref in refs]

    def _refs(self, made: Any, num_returns: int) -> list[ObjectRef[Any]]:
        if num_returns == 1:
            return [new_ref(made, self)]
        if num_returns == STREAMING:
            return [self._end_of_stream(made)]
        return [new_ref(ref, self) for ref in made or ()]

    # actors ---------------------------------------------------------------------------

    def create_actor(
        self, spec: ActorSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ActorRef:
        self.enter()
        exported = spec.exported
        if not isinstance(exported, Exported) or exported.engine is not self:
            exported = self._export_actor(spec)
        if spec.options.placement is not None:
            self._check_group(spec.name, spec.options.placement.group)
        call = messages.pack_call(
            f"{spec.name}.__init__", args, kwargs, 1, self, exported.captured
        )
        try:
            handle = exported.start(*call)
        except ValueError as error:  # Ray's ActorAlreadyExistsError is one
            raise ActorAlreadyExistsError(
                f"there is an actor with the name {spec.options.name!r} already. "
                "Use another name, or options(get_if_exists=True) to share it."
            ) from error
        if spec.options.lifetime != "detached":
            self._actors.add(handle)
        if spec.options.name is not None:
            directory.publish(handle, spec.interface)
        ref = self._actor_ref(handle)
        if spec.options.max_restarts:
            # Ray does not: a restarted actor is made from the same arguments.
            ref._id.arguments = call  # type: ignore[attr-defined]  # an ActorId
        return ref

    def _export_actor(self, spec: ActorSpec) -> Exported:
        translate.check_demand(spec.name, spec.options)
        packed = serialize.dumps_function(spec.cls, f"the actor class {spec.name}")
        code = worker.Code(self.home, spec.name, packed)
        namespace = self._namespace(spec.options.namespace)
        actor: Any = ray.remote(**translate.actor_options(spec.options, namespace))(
            worker.make_actor(code, spec)
        )
        exported = Exported(self, actor.remote, self._handles(packed.refs))
        spec.exported = exported
        return exported

    def _namespace(self, namespace: str | None) -> str:
        # Names of sessions that gave none must not meet, as in Ray.
        return namespace or self.config.namespace or f"skate-{self.session}"

    def _actor_ref(self, handle: Any) -> ActorRef:
        ref = ActorRef._new(ActorId.of(handle), self)
        assert isinstance(ref, ActorRef)
        return ref

    def call_actor(
        self,
        actor: ActorRef,
        method: MethodSpec,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> list[ObjectRef[Any]]:
        self.enter()
        calls = self._calls(actor, method)
        try:
            if not (args or kwargs or calls.without is None):
                # Ray takes longer over calls that could have arguments.
                return [new_ref(calls.without._remote([], {}), self)]
            call = messages.pack_call(
                method.name, args, kwargs, method.num_returns, self
            )
            made = calls.bound._remote([*calls.first, *call], {}, **calls.options)
        except ray.exceptions.RayError as error:  # too many calls
            failure = translate.to_skate(error)
        else:
            return self._refs(made, method.num_returns)
        raise failure

    def _calls(self, actor: ActorRef, method: MethodSpec) -> Calls:
        """How Ray calls ``method``: kept with the handle, until its options change."""
        handle = self.handle(actor)
        known: dict[str, Calls] = actor._id.calls  # type: ignore[attr-defined]  # an ActorId
        found = known.get(method.name)
        if found is None or found.method is not method:
            found = known[method.name] = _calls_of(handle, method)
        return found

    def kill_actor(self, actor: ActorRef, no_restart: bool) -> None:
        self.enter()
        handle = self.handle(actor)
        if no_restart:
            ray.kill(handle, no_restart=True)
            directory.wait_for_death(handle)
            return
        restarts = directory.num_restarts(handle._actor_id.hex())
        ray.kill(handle, no_restart=False)
        directory.wait_for_restart(handle, restarts)

    def get_actor(self, name: str, namespace: str | None) -> NamedActor:
        self.enter()
        space = self._namespace(namespace)
        try:
            handle: Any = ray.get_actor(name, space)
        except ValueError:
            named = ray.util.list_named_actors(all_namespaces=True)
            known = sorted(n["name"] for n in named if n["namespace"] == space)
            there_is = (
                f"there is {', '.join(map(repr, known))}"
                if known
                else "there is no actor with a name"
            )
            raise ValueError(
                f"there is no live actor {name!r} in namespace {space!r}; {there_is}."
            ) from None
        return NamedActor(self._actor_ref(handle), directory.look_up(handle))

    def current_actor(self) -> NamedActor | None:
        if not self.own_interface:
            return None
        handle: Any = ray.get_runtime_context().current_actor
        interface = serialize.loads(self.own_interface)
        return NamedActor(self._actor_ref(handle), interface)

    def list_actors(self) -> list[ActorInfo]:
        self.enter()
        # The namespace of a session that gave none is its own affair.
        own = {self._namespace(None): self.config.namespace}
        return directory.list_actors(own)

    def list_tasks(self) -> Iterable[dict[str, Any]]:
        raise EngineError(_ASK_RAY)

    def list_objects(self) -> Iterable[dict[str, Any]]:
        raise EngineError(_ASK_RAY)

    def list_workers(self) -> Iterable[dict[str, Any]]:
        raise EngineError(_ASK_RAY)

    # streams --------------------------------------------------------------------------

    def _end_of_stream(self, items: Any) -> ObjectRef[Any]:
        """The ref of a stream's end, through whose id the stream is read."""
        end = RefId(items.completed(), Stream(items))
        return ObjectRef._new(end, self)  # type: ignore[arg-type]  # no int

    def next_item(
        self, task: int, timeout: float | None, taken: list[ObjectRef[Any]]
    ) -> bool:
        self.enter()
        ref = _stream_of(task).next(timeout)
        if ref is None:
            return False
        taken.append(new_ref(ref, self))
        return True

    def peek_item(self, task: int) -> ObjectRef[Any]:
        self.enter()
        return new_ref(_stream_of(task).ahead(), self)

    def look_at_stream(self, task: int) -> int:
        self.enter()
        return _stream_of(task).look()

    def close_stream(self, task: int) -> None:
        if not self._closed:
            _stream_of(task).close()

    def ready_future(self, ref: ObjectRef[Any]) -> Future[None]:
        return streams.ended(self.handle(ref))

    # cancelling -----------------------------------------------------------------------

    def cancel(self, ref: ObjectRef[Any], force: bool, recursive: bool) -> bool:
        self.enter()
        id_: RefId = ref._id  # type: ignore[assignment]  # no int
        level = KILLED if force else CANCELLED
        if id_.cancelled >= level:
            return True  # Ray may crash over a second time
        if not cancelling.cancel(id_.ref, force=force, recursive=recursive):
            return False
        id_.cancelled = level
        return True

    def is_cancelled(self) -> bool:
        if self._is_driver:
            return False
        try:
            return bool(ray.get_runtime_context().is_canceled())
        except RuntimeError:
            raise RuntimeError(
                "is_canceled() is not for async actors: their calls are cancelled as "
                "asyncio does it, by an asyncio.CancelledError."
            ) from None

    # objects --------------------------------------------------------------------------

    def put(self, value: Any) -> ObjectRef[Any]:
        self.enter()
        packed = serialize.dumps(value, "the value given to skate.put")
        message = messages.pack(packed, self)
        ref = self.read_errors(lambda: ray.put(message))
        return new_ref(ref, self)

    def get(
        self, refs: Sequence[ObjectRef[Any]], timeout: float | None, copy: bool
    ) -> list[Any]:
        self.enter()
        # Written out: callers get thousands, and each of these lines counts.
        handles = [ref._id.ref for ref in refs if ref._counter is self]  # type: ignore[attr-defined]
        if len(handles) != len(refs):
            handles = [self.handle(ref) for ref in refs]  # which says what is wrong
        try:
            found = self.read_errors(lambda: ray.get(handles, timeout=timeout))
        except ray.exceptions.GetTimeoutError:
            raise GetTimeoutError(
                f"not all of {len(refs)} values came within {timeout} s. The work goes "
                "on; wait longer, or find out what it waits for."
            ) from None
        except TaskCancelledError as error:
            if any(ref._id.cancelled == KILLED for ref in refs):  # type: ignore[attr-defined]
                raise TaskKilledError(f"{error} With force: its worker ended.") from (
                    None
                )
            raise
        loads = pickle.loads  # as serialize.loads, without buffers
        return [
            loads(message)
            if type(message) is bytes
            else self.end_stream(ref._id)
            if message is None
            else messages.unpack(message, self, copy)
            for message, ref in zip(found, refs, strict=True)
        ]

    def end_stream(self, task: int) -> object:
        """Raise what ended the stream, which Ray does not say of the stream's end."""
        stream: Stream | None = getattr(task, "stream", None)
        if stream is not None:  # else it is another process's stream
            self.read_errors(stream.check)
        return None

    def read(self, result: Callable[[], messages.Message]) -> Any:
        """The value in the message that ``result`` returns; errors as skate's own."""
        return messages.unpack(self.read_errors(result), self)

    @staticmethod
    def read_errors(call: Callable[[], Any]) -> Any:
        """What ``call`` returns; what Ray raises in it, as skate's own error."""
        try:
            return call()
        except ray.exceptions.RayError as error:
            failure = translate.to_skate(error)
        raise failure

    def wait(
        self, refs: list[ObjectRef[Any]], num_returns: int, timeout: float | None
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        check_refs("skate.wait", refs)
        check_distinct("skate.wait", refs)
        self.enter()
        by_handle = {self.handle(ref): ref for ref in refs}
        # Whether there is a value, not whether it is here: ``get`` brings it.
        ready, others = ray.wait(
            list(by_handle),
            num_returns=num_returns,
            timeout=timeout,
            fetch_local=False,
        )
        return [by_handle[h] for h in ready], [by_handle[h] for h in others]

    def watch(self) -> RayWatch:
        self.enter()
        return RayWatch(self)

    def future(self, ref: ObjectRef[Any], /) -> Future[Any]:
        self.enter()
        return self._futures.submit(ref)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        import numpy as np

        self.enter()
        return np.empty(shape, dtype)

    def lend(self, array: np.ndarray) -> ObjectRef[Any]:
        return self.put(array)

    # placement groups -----------------------------------------------------------------

    def create_placement_group(
        self, bundles: Sequence[Mapping[str, float]], strategy: str, name: str
    ) -> str:
        self.enter()
        group = placement.create(bundles, strategy, name)
        self._placements.add(group)
        return group

    def remove_placement_group(self, group: str) -> None:
        self.enter()
        placement.remove(group)
        self._placements.discard(group)
        self._removed.add(group)

    def _check_group(self, name: str, group: str) -> None:
        """Refuse what Ray would let wait for ever."""
        if group in self._removed:
            raise TaskPlacementGroupRemoved(
                f"{name} cannot run in placement group {group}, which was removed."
            )

    def placement_groups(self, group: str | None = None) -> dict[str, GroupInfo]:
        self.enter()
        nodes = [n["Resources"] for n in self.nodes() if n["Alive"]]
        found = placement.table(nodes)
        return {  # Ray keeps those that were removed, of earlier sessions too
            known: info
            for known, info in found.items()
            if group in (None, known)
            and (info.state != "REMOVED" or known in self._removed)
        }

    # groups ---------------------------------------------------------------------------

    def join_group(
        self, name: str, rank: int, world_size: int, timeout: float | None
    ) -> Group:
        self.enter()
        return group.join(self.session, name, rank, world_size, timeout)

    # the session ----------------------------------------------------------------------

    def context(self) -> TaskContext:
        if self._is_driver:
            return TaskContext(0, 0, 0, "", True)
        here = ray.get_runtime_context()
        actor_id = here.get_actor_id()
        if actor_id and self._restarts is None:  # the same for the whole process
            self._restarts = directory.num_restarts(actor_id)
        return TaskContext(
            task_id=int(here.get_task_id() or "0", 16),
            actor_id=int(actor_id or "0", 16),
            worker_id=int(here.get_worker_id(), 16),
            task_name=self.task_name.get(),
            is_driver=False,
            num_restarts=self._restarts or 0,
        )

    def assigned_resources(self) -> dict[str, float]:
        if self._is_driver:
            return {}
        assigned: dict[str, float] = ray.get_runtime_context().get_assigned_resources()
        return placement.placed(translate.countable(assigned))

    def gpus(self) -> tuple[int | str, ...]:
        return () if self._is_driver else tuple(ray.get_gpu_ids())

    def runtime_env(self) -> RuntimeEnv:
        env = dict(ray.get_runtime_context().runtime_env)
        return check_runtime_env("runtime_env", env)

    def nodes(self) -> list[dict[str, Any]]:
        self.enter()
        return [
            {**node, "Resources": translate.countable(node["Resources"])}
            for node in ray.nodes()
        ]

    def cluster_resources(self) -> dict[str, float]:
        self.enter()
        return translate.countable(ray.cluster_resources())

    def available_resources(self) -> dict[str, float]:
        self.enter()
        free = translate.countable(ray.available_resources())
        return {key: free.get(key, 0.0) for key in self.cluster_resources()}

    def statistics(self) -> dict[str, int]:
        self.enter()
        return statistics.collect()

    def observer(self) -> Observer:
        self.enter()
        return RayObserver(self)

    def failed(self, ref: ObjectRef[Any]) -> bool:
        try:
            ray.get(self.handle(ref))
        except ray.exceptions.RayError:
            return True
        return False

    def why(self, ref: ObjectRef[Any]) -> str:
        self.enter()
        handle = self.handle(ref)
        ready, _ = ray.wait([handle], timeout=0, fetch_local=False)
        if ready and self.failed(ref):
            return "it has an error: get raises it."
        if ready:
            return "it has its value now."
        free = translate.describe(self.available_resources())
        return why.explain(handle, tasks.calls(self.began_ns), free)

    def has_died(self) -> bool:
        return not ray.is_initialized()

    def shutdown(self) -> None:
        """End what this session started; Ray too, if it was started for it."""
        if self._closed:
            return
        self._closed = True
        self._futures.close()
        if self.on_shutdown is not None:
            self.on_shutdown()  # which ends the job, and with it all that it started
            return
        for handle in list(self._actors):
            ray.kill(handle)
        for one in self._placements:
            placement.remove(one)


def _calls_of(handle: Any, method: MethodSpec) -> Calls:
    options = translate.method_options(method)
    stub = worker.stub_name(method.name)
    if method.num_returns == STREAMING:
        bound = getattr(handle, worker.STREAM)
        actor = handle._ray_actor_creation_function_descriptor.class_name
        name = {"name": f"{actor.rpartition('.')[2]}.{method.name}"}
        return Calls(method, None, bound, (method.name,), options | name)
    without = None if options else getattr(handle, worker.without_arguments(stub))
    return Calls(method, without, getattr(handle, stub), (), options)


def _stream_of(task: int) -> Stream:
    stream: Stream = task.stream  # type: ignore[attr-defined]  # a RefId
    return stream
