"""The embedded engine as one process sees it: driver and workers alike.

Almost everything is in ``_core.Node``; this adds what needs Python: exporting code,
naming errors, asking the supervisor.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

from ... import _core
from ..._options import ActorOptions, TaskOptions
from ..._placement import GroupInfo
from ..._ref import ActorRef, ObjectRef, set_default_counter
from ..._runtime_env import RuntimeEnv
from ..._stream import END, ITEM, NOT_YET
from ...exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    OutOfMemoryError,
    OwnerDiedError,
    PendingCallsLimitExceeded,
    ResourceError,
    RuntimeEnvSetupError,
    SkateError,
    TaskCancelledError,
    TaskKilledError,
    TaskPlacementGroupRemoved,
    WorkerCrashedError,
)
from .. import advice, serialize
from ..futures import FutureDispatcher
from ..protocol import (
    ActorInfo,
    ActorSpec,
    ActorState,
    EngineConfig,
    MethodSpec,
    NamedActor,
    TaskContext,
    TaskSpec,
    label_of,
    this_machine,
)
from . import group as groups
from . import refusals, stacks
from .actors import ActorRequest
from .observe import OwnObserver
from .processes import PLACEMENT_REMOVED, Cause
from .retries import pack_types

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np
    import numpy.typing as npt

    from ..protocol import Group

_Error = _core.SystemError
_DETACHED_MIN = 16
# How long an actor waits for the place of a process that ends, and between two looks.
_PLACE_S = 2.0
_LOOK_AGAIN_S = 0.02
_STREAM_STATES: dict[int, int] = {
    _core.NextItem.ITEM: ITEM,
    _core.NextItem.END: END,
    _core.NextItem.NOT_YET: NOT_YET,
}


class Exported:
    """Code in the store of this process; freed with the last spec that uses it."""

    __slots__ = ("__weakref__", "engine", "function_id", "holds_refs", "resources")

    engine: EmbeddedEngine | None  # None: its session has ended

    def __init__(
        self, engine: EmbeddedEngine, holds_refs: bool, resources: bytes | None
    ) -> None:
        self.function_id = 0  # of nothing
        self.engine = engine
        self.holds_refs = holds_refs
        self.resources = resources  # None: one CPU of the pool

    def __del__(self) -> None:
        # In a cycle of garbage it may be used after this: then it is exported anew.
        engine, self.engine = getattr(self, "engine", None), None
        if engine is not None and self.function_id:
            engine.release(self.function_id)


class EmbeddedEngine:
    """See ``engine.protocol.Engine``."""

    name = "embedded"

    def __init__(
        self, node: _core.Node, config: EngineConfig, session: str, *, is_driver: bool
    ) -> None:
        self.config = config
        self.session = self.node_id = session
        self.node = node
        self._is_driver = is_driver
        # In a worker there is nothing to end: the session is the driver's.
        self.end_session: Callable[[], None] | None = None
        # Task id, actor id and task name of what runs here; set for every task, so it
        # is made into a TaskContext only for those who ask.
        self.context_var: ContextVar[tuple[int, int, str]] = ContextVar(
            "skate_context", default=(0, 0, "")
        )
        # By id: these live without any other handle.
        self._detached: dict[int, ActorRef] = {}
        self._detached_max = _DETACHED_MIN  # then the dead are looked for
        self.num_restarts = 0  # of the actor that this process is
        self.own_interface = b""  # of that actor, pickled
        self.env = config.runtime_env  # of this process
        self.gpu_ids: tuple[int | str, ...] = ()  # that it holds
        self.memberships = groups.Memberships()
        self._futures = FutureDispatcher(self)
        self._exports: WeakSet[Exported] = WeakSet()
        self._stacks_fd = stacks.answer_signals(node)
        # Straight to the core: these are called once or more for every task.
        self.release = node.release
        self.adopt = node.adopt
        self.name_actor = node.name_actor
        self.put = node.put
        self.lend = node.lend
        self.wait = node.wait
        self.watch = node.watch
        self.next_item = node.next_item
        self.peek_item = node.peek_item
        self.close_stream = node.close_stream
        self.is_async = False  # the process of an async actor
        _core.configure(
            self,
            ObjectRef,
            ActorRef,
            serialize.dumps,
            serialize.loads,
            serialize.load_error,
            self._failure,
        )
        if advice.wanted():
            _core.give_advice(advice.get_in_a_loop, advice.same_large_argument)
        set_default_counter(self)

    # tasks ------------------------------------------------------------------

    def submit(
        self, spec: TaskSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[ObjectRef[Any]]:
        exported = spec.exported
        if exported is None or exported.engine is not self:
            exported = spec.exported = self._export_task(spec)
        options = spec.options
        try:
            return self.node.submit(
                exported.function_id,
                exported.holds_refs,
                options.name or "",
                args,
                kwargs,
                options.num_returns,
                options.max_retries,
                exported.resources,
                options.window,
                self.context_var.get()[0],
            )
        except TypeError as error:
            raise serialize.explain_arguments(
                spec.name, args, kwargs, error
            ) from error.__cause__

    def _export_task(self, spec: TaskSpec) -> Exported:
        options = spec.options
        resources = self._check_resources(spec.name, options)
        env = self._env_of(options)
        plain = resources == {"CPU": 1.0} and env == self.config.runtime_env
        return self._export(
            spec.function,
            f"function {spec.name}",
            None if plain else pickle.dumps((resources, env)),
            label_of(spec.function),
            (_pack_retry_on(options), options.max_calls),
        )

    def _export(
        self,
        code: Any,
        what: str,
        resources: bytes | None,
        label: str,
        extra: tuple[Any, ...] = (),
    ) -> Exported:
        packed = serialize.dumps_function(code, what)
        data = pickle.dumps(
            (packed.header, [b.raw().tobytes() for b in packed.buffers], extra)
        )
        if len(data) > advice.LARGE_CODE_BYTES and advice.wanted():
            advice.large_code(what, len(data))
        exported = Exported(self, bool(packed.refs), resources)
        self._exports.add(exported)
        self.node.export_function(data, packed.refs, exported)
        self.node.name_function(exported.function_id, label)
        return exported

    def _env_of(self, options: TaskOptions | ActorOptions) -> RuntimeEnv:
        return options.runtime_env.here(self.name).over(self.env)

    def _check_resources(
        self, name: str, options: TaskOptions | ActorOptions
    ) -> dict[str, float]:
        wanted = {"CPU": float(options.num_cpus), "GPU": float(options.num_gpus)}
        wanted.update({k: float(v) for k, v in options.resources.items()})
        wanted = {k: v for k, v in wanted.items() if v > 0}
        if options.placement is not None:
            return options.placement.place(name, wanted)
        total = self.cluster_resources()
        lacking = {k: v for k, v in wanted.items() if v > total.get(k, 0.0)}
        if lacking:
            there = ", ".join(f"{k}: {v:g}" for k, v in total.items())
            asked = ", ".join(f"{k}: {v:g}" for k, v in lacking.items())
            raise ResourceError(
                f"{name} asks for {asked}, which no worker of this session can ever "
                f"have. There is {there}. Ask for less, or give skate.init more."
            )
        return wanted

    # actors -----------------------------------------------------------------

    def create_actor(
        self, spec: ActorSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ActorRef:
        options = spec.options
        resources = self._check_resources(spec.name, options)
        exported = spec.exported
        if exported is None or exported.engine is not self:
            exported = spec.exported = self._export(
                _ActorCode(spec), f"actor class {spec.name}", None, label_of(spec.cls)
            )
        full_name = None
        if options.name is not None:
            full_name = (self._namespace(options.namespace), options.name)
        is_detached = options.lifetime == "detached"
        # A worker may end before the actor: the driver owns the handle then.
        if is_detached:
            self._forget_the_dead()
        by_driver = is_detached and not self._is_driver
        actor = self.node.reserve_actor() if by_driver else self.node.new_actor()
        request = ActorRequest(
            actor_id=actor._id,
            class_name=spec.name,
            name=full_name,
            resources=resources,
            runtime_env=self._env_of(options),
            max_restarts=options.max_restarts,
            is_detached=is_detached,
            interface=_dump_interface(spec) if full_name is not None else b"",
        )
        restartable = options.max_restarts != 0
        code, holds_refs = exported.function_id, exported.holds_refs
        try:
            answer, value = self._find_place(request)
            if answer == "exists":
                raise ActorAlreadyExistsError(
                    f"an actor named {options.name!r} lives already in this namespace. "
                    "Use another name, skate.get_actor(name), or get_if_exists=True."
                )
            if answer == "full":
                raise ResourceError(f"cannot start actor {spec.name}: {value}.")
            index, epoch = value
            if by_driver:
                self.node.hand_to_driver(
                    actor, index, epoch, code, holds_refs, restartable, args, kwargs
                )
            else:
                self.node.place_actor(actor, index, epoch)
                # First: statistics call its constructor by this name, too.
                self.node.name_actor(actor._id, spec.name.rpartition(".")[2])
                self.node.construct_actor(
                    actor, code, holds_refs, restartable, args, kwargs
                )
        except BaseException as error:
            # What raised may be Ctrl-C, or skate.cancel: nothing may wait for its call.
            # Its name was there for others, who may have called it.
            self.node.drop_reserved(actor)
            self.kill_actor(actor, no_restart=True)
            if not isinstance(error, TypeError):
                raise
            raise serialize.explain_arguments(
                spec.name, args, kwargs, error
            ) from error.__cause__
        if is_detached and not by_driver:
            self._detached[actor._id] = actor
        return actor

    def _find_place(self, request: ActorRequest) -> Any:
        """Ask until there is a place, while those of ended processes come free."""
        deadline = time.monotonic() + _PLACE_S
        while True:
            answer, value = self._ask("create_actor", request)
            if answer != "full":
                return answer, value
            why, comes_free = value
            if not comes_free or time.monotonic() > deadline:
                return answer, why
            time.sleep(_LOOK_AGAIN_S)

    def _forget_the_dead(self) -> None:
        """Drop handles of detached actors that have died, once there are many."""
        if len(self._detached) < self._detached_max:
            return
        known = list(self._detached)
        infos = self.list_actors()
        alive = {i.actor_id for i in infos if i.state is not ActorState.DEAD}
        for actor_id in known:
            if actor_id not in alive:
                self._detached.pop(actor_id, None)
        # Twice as many: a look at all of them costs each a constant time.
        self._detached_max = max(_DETACHED_MIN, 2 * len(self._detached))

    def _namespace(self, namespace: str | None) -> str:
        return self.config.namespace if namespace is None else namespace

    def call_actor(
        self,
        actor: ActorRef,
        method: MethodSpec,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> list[ObjectRef[Any]]:
        limit = method.max_pending_calls
        if limit > 0 and self.node.unanswered_calls(actor) >= limit:
            raise PendingCallsLimitExceeded(
                f"{method.name}: this process has {limit} calls of the actor that are "
                f"not answered, and max_pending_calls={limit}. Wait for some of them "
                "first: skate.wait(refs)."
            )
        try:
            return self.node.call_actor(
                actor,
                method,
                args,
                kwargs,
                self.context_var.get()[0],
                _retry_on(method) if method.retry_exceptions else b"",
            )
        except TypeError as error:
            raise serialize.explain_arguments(
                method.name, args, kwargs, error
            ) from error.__cause__

    def kill_actor(self, actor: ActorRef, no_restart: bool) -> None:
        victim = self._ask("kill", self._own_id(actor), no_restart)
        # From then on calls fail, or go to where it restarts.
        if victim is None:
            self.node.catch_up()
        else:
            self.node.wait_death(*victim)
        if no_restart:
            self._detached.pop(actor._id, None)

    def get_actor(self, name: str, namespace: str | None) -> NamedActor:
        space = self._namespace(namespace)
        answer, value = self._ask("get_actor", (space, name))
        if answer != "ok":
            known = ", ".join(map(repr, value)) or "none"
            raise ValueError(
                f"there is no actor named {name!r} in namespace {space!r}; known: "
                f"{known}. It may have ended with its last handle."
            )
        actor_id, interface = value
        return NamedActor(self._handle(actor_id), pickle.loads(interface))

    def current_actor(self) -> NamedActor | None:
        _, actor_id, _ = self.context_var.get()
        if not actor_id:
            return None
        return NamedActor(self._handle(actor_id), serialize.loads(self.own_interface))

    def _handle(self, actor_id: int) -> ActorRef:
        actor = self.adopt(ActorRef, actor_id)
        assert isinstance(actor, ActorRef)
        return actor

    def list_actors(self) -> list[ActorInfo]:
        found: list[ActorInfo] = []
        last = 0
        while True:
            last, part = self._ask("list_actors", last)
            if not part:
                return found
            for actor_id, cls, state, name, restarts, pid, detached, *death in part:
                died = state is ActorState.DEAD
                found.append(
                    ActorInfo(
                        actor_id=actor_id,
                        class_name=cls,
                        state=state,
                        name=name[1] if name is not None else None,
                        namespace=name[0] if name is not None else "",
                        num_restarts=restarts,
                        pid=pid,
                        is_detached=detached,
                        death_cause=_how_it_ended(*death) if died else "",
                    )
                )

    def list_tasks(self) -> Iterator[dict[str, Any]]:
        from . import listing

        return listing.list_tasks(self)

    def list_objects(self) -> Iterator[dict[str, Any]]:
        from . import listing

        return listing.list_objects(self)

    def list_workers(self) -> Iterator[dict[str, Any]]:
        from . import listing

        return listing.list_workers(self)

    # objects ----------------------------------------------------------------

    def get(
        self, refs: Sequence[ObjectRef[Any]], timeout: float | None, copy: bool
    ) -> list[Any]:
        return self.node.get(refs, timeout, copy)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        import numpy

        wanted = numpy.dtype(dtype)
        if wanted.hasobject:
            raise TypeError(f"an array in the object store cannot hold {wanted!r}.")
        return self.node.empty(shape, wanted)

    def future(self, ref: ObjectRef[Any]) -> Future[Any]:
        return self._futures.submit(ref)

    def ready_future(self, ref: ObjectRef[Any]) -> Future[None]:
        return self._futures.submit(ref, with_value=False)

    def look_at_stream(self, task: int) -> int:
        return _STREAM_STATES[self.node.look_at_stream(task)]

    # cancelling -------------------------------------------------------------

    def cancel(self, ref: ObjectRef[Any], force: bool, recursive: bool) -> bool:
        if force:
            index, _ = _core.owner_of(ref._id)
            if index != self.node.index:  # only its owner knows whose call it is
                found = self.node.explain(ref._id, index)
                if found is not None and found["of_actor"]:
                    return False
        return self.node.cancel(ref, force, recursive)

    def is_cancelled(self) -> bool:
        if self.is_async:
            raise RuntimeError(
                "is_canceled() is not for async actors: their calls are cancelled as "
                "asyncio does it, by an asyncio.CancelledError."
            )
        task_id, _, _ = self.context_var.get()
        return task_id != 0 and self.node.is_cancelled(task_id)

    # groups -----------------------------------------------------------------

    def join_group(
        self, name: str, rank: int, world_size: int, timeout: float | None
    ) -> Group:
        self.node.stay()
        return groups.join(self, name, rank, world_size, timeout)

    # the session ------------------------------------------------------------

    def context(self) -> TaskContext:
        task_id, actor_id, name = self.context_var.get()
        worker_id = 0 if self._is_driver else self.node.epoch << 32 | self.node.index
        return TaskContext(
            task_id, actor_id, worker_id, name, self._is_driver, self.num_restarts
        )

    def create_placement_group(
        self, bundles: Sequence[Mapping[str, float]], strategy: str, name: str
    ) -> str:
        info = GroupInfo.of(bundles, strategy, name, self.cluster_resources())
        # Its id comes first: the call that creates it may be interrupted, and then
        # nobody else knows the group.
        group: str = self._ask("new_placement_group_id")
        removal = pickle.dumps(("remove_placement_group", group))
        try:
            self._ask("create_placement_group", group, info)
        except BaseException:
            self.node.tell(removal)
            raise
        return group

    def remove_placement_group(self, group: str) -> None:
        self._ask("remove_placement_group", group)

    def placement_groups(self, group: str | None = None) -> dict[str, GroupInfo]:
        if group is not None:
            info: GroupInfo | None = self._ask("placement_group", group)
            return {} if info is None else {group: info}
        groups: dict[str, GroupInfo] = self._ask("placement_groups")
        return groups

    def assigned_resources(self) -> dict[str, float]:
        if self._is_driver:
            return {}
        assigned: dict[str, float] = self._ask("assigned")
        return assigned

    def gpus(self) -> tuple[int | str, ...]:
        return self.gpu_ids

    def runtime_env(self) -> RuntimeEnv:
        return self.env

    def nodes(self) -> list[dict[str, Any]]:
        return [this_machine(self)]

    def cluster_resources(self) -> dict[str, float]:
        total = {"CPU": float(self.config.num_cpus)}
        if self.config.num_gpus:
            total["GPU"] = float(self.config.num_gpus)
        return {**total, **{k: float(v) for k, v in self.config.resources.items()}}

    def available_resources(self) -> dict[str, float]:
        available: dict[str, float] = self._ask("available")
        return available

    def statistics(self) -> dict[str, int]:
        return self.node.statistics()

    def has_died(self) -> bool:
        return self.node.engine_died

    def failed(self, ref: ObjectRef[Any]) -> bool:
        return self.node.holds_error(self._own_id(ref))

    def report_hang(self) -> bool:
        """Say on stderr, once, that nothing runs and why. True: it has been said."""
        from .why import nothing_runs

        text = nothing_runs(self)
        # It may be closed: that is no business of the call that waits.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            if text:
                sys.stderr.write(text + "\n")
                sys.stderr.flush()
        return bool(text)

    def why(self, ref: ObjectRef[Any]) -> str:
        from .why import Explainer

        return Explainer(self).explain(self._own_id(ref))

    def observer(self) -> OwnObserver:
        return OwnObserver(self.node)

    def shutdown(self) -> None:
        if self.end_session is not None:
            self.end_session()

    def end(self) -> None:
        """The session is over: let go of what would keep its memory mapped."""
        self.node.close()
        self.memberships.end()  # once no other call can begin to wait
        self._detached.clear()
        self._futures.close()
        stacks.stop_answering(self._stacks_fd)
        for exported in self._exports:
            exported.engine = None
        set_default_counter(None)
        _core.unconfigure()

    # inner ------------------------------------------------------------------

    def _own_id(self, ref: ObjectRef[Any]) -> int:
        """The ids of another session are those of other things here."""
        if ref._counter is not self:
            raise refusals.ref_of_an_ended_session(ref)
        return ref._id

    def ask(self, *question: Any) -> tuple[Any, _core.Descriptor | None]:
        """The supervisor's answer, and the descriptor that came with it, if any."""
        data, file = self.node.ask(pickle.dumps(question))
        return pickle.loads(data), file

    def _ask(self, *question: Any) -> Any:
        return self.ask(*question)[0]

    def _failure(self, error: int, cause: int, detail: int) -> SkateError:
        """The exception for what the core reports in numbers."""
        how = _how_it_ended(cause, detail)
        if error == _Error.WORKER_CRASHED and cause == Cause.OUT_OF_MEMORY:
            text = self._ask("note", detail)
            return OutOfMemoryError(
                f"{text} Its max_retries are used up. Give it less to do at a time, "
                "run fewer such tasks at once (num_cpus), or raise "
                "SKATE_MEMORY_MONITOR."
            )
        if error == _Error.WORKER_CRASHED and cause == Cause.NO_PROCESS:
            return ResourceError(self._ask("note", detail))
        if error == _Error.WORKER_CRASHED:
            return WorkerCrashedError(
                f"the worker that ran this task died: {how}, and max_retries are used "
                "up. A crash in native code, os._exit or the kernel's memory limit do "
                "this; see the worker's output above."
            )
        if error == _Error.ACTOR_DIED:
            if cause == Cause.CONSTRUCTOR_FAILED:
                return ActorDiedError(self._ask("note", detail))
            if cause == Cause.NO_PROCESS:
                return ResourceError(self._ask("note", detail))
            if cause == Cause.RUNTIME_ENV_FAILED:
                text = self._ask("note", detail)
                return RuntimeEnvSetupError(text)
            if cause == Cause.UNKNOWN and detail:
                return refusals.actor_not_brought()
            return ActorDiedError(f"the actor is dead: {how}. Create it anew.")
        if error == _Error.ACTOR_UNAVAILABLE:
            return ActorUnavailableError(
                f"the actor restarts, for {how}. This call had been sent, and may or "
                "may not have run; later calls wait for the restart. With "
                "max_task_retries, such calls are sent again."
            )
        if error == _Error.CANCELLED:
            if detail:
                return TaskKilledError(
                    "the task was cancelled by skate.cancel(..., force=True), which "
                    "ended its worker."
                )
            return TaskCancelledError("the task was cancelled by skate.cancel.")
        if error == _Error.NO_RESOURCES:
            if cause != Cause.NO_PROCESS:
                return refusals.call_not_brought(detail)
            if detail == PLACEMENT_REMOVED:
                return TaskPlacementGroupRemoved("its placement group was removed.")
            return ResourceError(self._ask("note", detail))
        if error == _Error.OWNER_DIED:
            return OwnerDiedError(
                f"the value is gone with the process that owned it: {how}. The task "
                "that called put or .remote for it must be run again."
            )
        return ObjectLostError("the value is gone.")


class ActorCode(NamedTuple):
    """A class and what its process must know of it."""

    cls: type
    name: str
    is_async: bool
    max_concurrency: int
    groups: tuple[int, ...]  # how many calls each concurrency group runs at once
    interface: bytes  # pickled
    receiver: str | None  # the method that takes in the calls of all others


class _ActorCode:
    """Pickles the class as code; comes out as ``ActorCode``."""

    def __init__(self, spec: ActorSpec) -> None:
        self._spec = spec
        self.__module__ = spec.cls.__module__
        self.__qualname__ = "<actor>"

    def __reduce__(self) -> tuple[Any, ...]:
        spec = self._spec
        packed = serialize.dumps_function(spec.cls, f"actor class {spec.name}")
        buffers = [b.raw().tobytes() for b in packed.buffers]
        options = spec.options
        groups = tuple(options.concurrency_groups.values())
        state = (
            spec.name,
            spec.is_async,
            options.max_concurrency,
            groups,
            _dump_interface(spec),
            spec.receiver,
        )
        return _load_actor_code, (packed.header, buffers, state)


def _pack_retry_on(options: TaskOptions) -> bool | bytes:
    kinds = options.retry_exceptions
    return kinds if isinstance(kinds, bool) else pack_types(kinds)


def _retry_on(method: MethodSpec) -> bytes:
    """What ``retry_on`` of worker.py reads, of a method with ``retry_exceptions``."""
    kinds = method.retry_exceptions
    if not method.max_task_retries or not kinds:
        return b""
    return b"*" if kinds is True else pack_types(kinds)


def _load_actor_code(
    header: bytes,
    buffers: list[bytes],
    state: tuple[str, bool, int, tuple[int, ...], bytes, str | None],
) -> ActorCode:
    return ActorCode(serialize.loads(header, buffers), *state)


def _dump_interface(spec: ActorSpec) -> bytes:
    return serialize.dumps(spec.interface).header


def _how_it_ended(cause: int, detail: int) -> str:
    match cause:
        case Cause.EXITED:
            return f"its process exited with status {detail}"
        case Cause.SIGNALED:
            return f"its process was ended by {_signal_name(detail)}"
        case Cause.KILLED:
            return "it was ended by skate.kill"
        case Cause.OUT_OF_SCOPE:
            return "its last handle was dropped"
        case Cause.CONSTRUCTOR_FAILED:
            return "its constructor raised, or its placement group was removed"
        case Cause.RUNTIME_ENV_FAILED:
            return "its runtime_env could not be set up"
        case Cause.ACTOR_EXIT:
            return "it ended itself by exit_actor"
        case Cause.OWNER_ENDED:
            return "the process that had created it ended"
        case _:
            return "its process has ended"


def _signal_name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
