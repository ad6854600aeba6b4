"""The engine's face: every call of ``engine.protocol.Engine``, on the baton."""

from __future__ import annotations

import itertools
import os
import secrets
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ..._exact import printable
from ..._placement import GroupInfo, group_of
from ..._ref import ActorRef, ObjectRef, check_distinct, check_refs, restore_refs
from ..._runtime_env import RuntimeEnv
from ..._stream import END
from ...exceptions import (
    ActorAlreadyExistsError,
    EngineError,
    GetTimeoutError,
    PendingCallsLimitExceeded,
    SkateError,
)
from .. import serialize
from ..futures import FutureDispatcher, begin
from ..protocol import ActorInfo, ActorState, NamedActor, label_of, this_machine
from . import listing
from .actor import Actor, ActorCall, State
from .baton import (
    Baton,
    Stopped,
    Wait,
    context,
    holds_baton,
    stop_if_interrupted,
    this_grant,
    this_worker,
)
from .group import InlineGroup, Meeting, Place
from .objects import Entry, Objects, Released, Stored
from .placement import Groups
from .record import Record
from .resources import Resources
from .streams import Stream, take_next
from .units import Arguments, Call, Exported, Task
from .waiting import Completion, DrivenFuture, InlineWatch
from .why import why

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from ..._options import ActorOptions, TaskOptions
    from ..protocol import (
        ActorSpec,
        EngineConfig,
        Group,
        MethodSpec,
        TaskContext,
        TaskSpec,
    )
    from .baton import Unit


_SETTLING_ROUNDS = 100


def open(config: EngineConfig) -> InlineEngine:  # noqa: A001  # as every engine  # every engine has it
    """Start the inline engine: nothing but a few empty tables."""
    return InlineEngine(config)


class InlineEngine:
    """Tasks and actors in this process, one at a time."""

    name = "inline"

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.session = self.node_id = secrets.token_hex(6)
        self.baton = Baton(self._report, self._forget_dropped)
        self.lock = self.baton.lock
        self.resources = Resources(config)
        self.groups = Groups(self.baton, self.resources)
        self.objects = Objects()
        self._ids = itertools.count(1)
        self._pid = os.getpid()
        self._released: Released[int] = Released()
        self.streams: dict[int, Stream] = {}  # by the id of their end
        self._closed_streams: Released[int] = Released()
        self.unfinished: dict[int, Call] = {}  # by task id
        self._actors: dict[int, Actor] = {}
        self._names: dict[tuple[str, str], Actor] = {}
        self._dead_actors: deque[ActorInfo] = deque(maxlen=1000)
        self._meetings: dict[str, Meeting] = {}
        self._dropped_groups: Released[Place] = Released()
        self._futures = FutureDispatcher(self)
        self._closed = False
        self.record = Record(self)

    def new_id(self) -> int:
        return next(self._ids)

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
        with self.lock:
            self._forget_dropped()

    # Counting refs --------------------------------------------------------------------

    def release(self, ref_id: int, /) -> None:
        self._released.note(ref_id)

    def adopt(self, kind: type[ObjectRef[Any]], ref_id: int, /) -> ObjectRef[Any]:
        with self.lock:
            actor = self._actors.get(ref_id)
            if actor is not None:
                actor.count += 1
            else:
                self.objects.count(ref_id, +1)
        return kind._new(ref_id, self)

    def name_actor(self, ref_id: int, class_name: str, /) -> None:
        pass  # the actor is here, and knows

    def _forget_dropped(self) -> None:
        self._released.drain(self._forget)
        self._closed_streams.drain(self._forget_stream)
        self._dropped_groups.drain(self._leave_group)

    def _forget(self, ref_id: int) -> None:
        actor = self._actors.get(ref_id)
        if actor is not None:
            actor.count -= 1
            if actor.count == 0:
                if actor.state is State.DEAD:
                    del self._actors[ref_id]
                actor.end_if_unused()
        elif ref_id in self.objects:
            self.objects.count(ref_id, -1)

    # Streams --------------------------------------------------------------------------

    def close_stream(self, task: int) -> None:
        self._closed_streams.note(task)

    def _forget_stream(self, task: int) -> None:
        stream = self.streams.pop(task, None)
        if stream is not None:
            stream.close()

    def next_item(
        self, task: int, timeout: float | None, taken: list[ObjectRef[Any]]
    ) -> bool:
        return take_next(self, task, timeout, taken)

    def peek_item(self, task: int) -> ObjectRef[Any]:
        self.enter()
        with self.lock:
            stream = self.streams.get(task)
            if stream is not None:
                return self.ref_of(stream.peek(task))
            self.objects.count(task, +1)
            return self.ref_of(task)

    def look_at_stream(self, task: int) -> int:
        self._settle()
        with self.lock:
            stream = self.streams.get(task)
            return END if stream is None else stream.look()

    def ref_of(self, ref_id: int) -> ObjectRef[Any]:
        """A ref for a count that the caller has."""
        return ObjectRef._new(ref_id, self)

    def wait_for_item(self, ahead: ObjectRef[Any], timeout: float | None) -> None:
        with self.lock:
            pending = [self.entry(ahead)]
            needed = self._needed(pending) if timeout is None else ()
        wait = Wait(lambda: self._describe("the next item", pending), timeout=timeout)
        self._block_for(pending, 1, wait, needed)
        if not pending[0].ready:
            raise GetTimeoutError(
                f"the next item of the stream did not come within {timeout} s. Its "
                "task goes on; ask again, or wait longer."
            )

    # Cancelling -----------------------------------------------------------------------

    def cancel(self, ref: ObjectRef[Any], force: bool, recursive: bool) -> bool:
        self.enter()
        with self.lock:
            call = self.entry(ref).producer
            if call is None:
                return True
            if force and isinstance(call, ActorCall):
                return False
            self._cancel(call, recursive)
        stop_if_interrupted()
        return True

    def _cancel(self, call: Call, recursive: bool) -> None:
        if recursive:
            for child in list(self.unfinished.values()):
                if child.parent == call.task_id and not child.cancelled:
                    self._cancel(child, recursive)
        call.cancel()

    def is_cancelled(self) -> bool:
        here = context.get()
        with self.lock:
            actor = self._actors.get(here.actor_id)
            call = self.unfinished.get(here.task_id)
        if actor is not None and actor.is_async:
            raise RuntimeError(
                "is_canceled() is not for async actors: their calls are cancelled as "
                "asyncio does it, by an asyncio.CancelledError."
            )
        return call is not None and call.cancelled

    # Values ---------------------------------------------------------------------------

    def load(self, stored: Stored, copy: bool = False) -> Any:
        buffers = [bytearray(b) for b in stored.buffers] if copy else stored.buffers
        with restore_refs(self):
            return serialize.loads(stored.header, buffers)

    def load_error(self, error: bytes) -> SkateError:
        with restore_refs(self):
            return serialize.load_error(error)

    def load_ref(self, ref: ObjectRef[Any], copy: bool = False) -> Any:
        """The value of a ref that is ready; raises its error."""
        with self.lock:
            entry = self.objects[ref]
        if entry.error is not None:
            raise self.load_error(entry.error)
        assert entry.value is not None
        return self.load(entry.value, copy)

    def put(self, value: Any) -> ObjectRef[Any]:
        self.enter()
        entry = Entry(None)
        entry.value = Stored.of(serialize.dumps(value, "the value given to skate.put"))
        with self.lock:
            return self.objects.add(self.new_id(), entry, self)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        import numpy as np

        self.enter()
        return np.empty(shape, dtype)

    def lend(self, array: np.ndarray) -> ObjectRef[Any]:
        return self.put(array)

    # Tasks ----------------------------------------------------------------------------

    def submit(
        self, spec: TaskSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[ObjectRef[Any]]:
        self.enter()
        function = self._export(spec, spec.function)
        arguments = Arguments(spec.name, args, kwargs)
        with self.lock:
            task = Task(self, spec.name, function, arguments, spec.options)
            task.label = spec.options.name or label_of(spec.function)
            self.record.submitted(task)
            refs = self._output_refs(task)
            task.await_arguments(task.post)
        return refs

    def env_of(self, options: TaskOptions | ActorOptions) -> RuntimeEnv:
        """The runtime environment of what is called here with ``options``."""
        return options.runtime_env.here(self.name).over(self.runtime_env())

    def runtime_env(self) -> RuntimeEnv:
        here = context.get()
        unit = self._actors.get(here.actor_id) or self.unfinished.get(here.task_id)
        return self.config.runtime_env if unit is None else unit.env

    def gpus(self) -> tuple[int | str, ...]:
        here = context.get()
        actor = self._actors.get(here.actor_id)
        grant = this_grant() if actor is None else actor.grant
        return () if grant is None else grant.gpus.ids

    def _export(self, spec: TaskSpec | ActorSpec, original: Any) -> Exported:
        exported = spec.exported
        if not isinstance(exported, Exported) or exported.engine is not self:
            exported = Exported(self, original, spec.name, spec.options)
            spec.exported = exported
        return exported

    def _output_refs(self, call: Call) -> list[ObjectRef[Any]]:
        return [self.objects.add(i, Entry(call), self) for i in call.outputs]

    # Actors ---------------------------------------------------------------------------

    def create_actor(
        self, spec: ActorSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ActorRef:
        self.enter()
        exported = self._export(spec, spec.cls)
        arguments = Arguments(f"{spec.name}.__init__", args, kwargs)
        with self.lock:
            key = self._name_key(spec.options.name, spec.options.namespace)
            if key in self._names:
                raise ActorAlreadyExistsError(
                    f"there is an actor with the name {spec.options.name!r} already. "
                    "Use another name, or options(get_if_exists=True) to share it."
                )
            owner = context.get().actor_id
            actor = Actor(self, spec, exported, arguments, owner)
            self._actors[actor.id] = actor
            if spec.options.name is not None:
                self._names[key] = actor
            actor.start()
            return self._handle(actor)

    def _name_key(self, name: str | None, namespace: str | None) -> tuple[str, str]:
        return namespace or self.config.namespace, name or ""

    def _handle(self, actor: Actor) -> ActorRef:
        ref = ActorRef._new(actor.id, self)
        assert isinstance(ref, ActorRef)
        return ref

    def actor_died(self, actor: Actor) -> None:
        for key, named in list(self._names.items()):
            if named is actor:
                del self._names[key]
        self._dead_actors.append(self._info(actor))
        if actor.is_detached:
            actor.count -= 1
        if actor.count == 0:
            self._actors.pop(actor.id, None)

    def end_actors_of(self, owner: Actor) -> None:
        """``owner``'s process would have ended, and with it those that it created."""
        for meeting in list(self._meetings.values()):
            meeting.actor_died(owner.id)
        for actor in list(self._actors.values()):
            if actor.owner == owner.id and not actor.is_detached:
                actor.die("the process that had created it ended")

    def call_actor(
        self,
        actor: ActorRef,
        method: MethodSpec,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> list[ObjectRef[Any]]:
        self.enter()
        callee = self._find(actor)
        here = context.get()
        caller = here.actor_id or here.task_id
        limit = method.max_pending_calls
        if limit > 0 and callee.unanswered(caller) >= limit:
            raise PendingCallsLimitExceeded(
                f"{method.name}: this caller has {limit} calls of {callee.title} that "
                f"are not answered, and max_pending_calls={limit}. Wait for some of "
                "them first: skate.wait(refs)."
            )
        arguments = Arguments(f"{callee.class_name}.{method.name}", args, kwargs)
        with self.lock:
            call = ActorCall(callee, method, arguments, caller)
            call.label = printable(f"{callee.label}.{method.name}")
            self.record.submitted(call)
            refs = self._output_refs(call)
            callee.submit(call)
        return refs

    def _find(self, actor: ActorRef) -> Actor:
        if actor._counter is not self:
            raise EngineError(
                "this handle is of an actor of an earlier session, which ended with "
                "skate.shutdown()."
            )
        return self._actors[actor._id]

    def kill_actor(self, actor: ActorRef, no_restart: bool) -> None:
        self.enter()
        victim = self._find(actor)
        home, instance = victim.home, victim.instance
        with self.lock:
            victim.crash("it was ended by skate.kill", restart=not no_restart)
        worker = this_worker()
        if worker is not None and worker.home is home:
            raise Stopped  # it killed itself
        if victim.state is State.DEAD:
            victim.instance = victim.receiver = None
        del instance  # outside of the lock: its __del__ may run

    def get_actor(self, name: str, namespace: str | None) -> NamedActor:
        self._settle()
        with self.lock:
            key = self._name_key(name, namespace)
            actor = self._names.get(key)
            if actor is None or actor.count == 0:
                known = sorted(n for space, n in self._names if space == key[0])
                there_is = (
                    f"there is {', '.join(map(repr, known))}"
                    if known
                    else ("there is no actor with a name")
                )
                raise ValueError(
                    f"there is no live actor {name!r} in namespace {key[0]!r}; "
                    f"{there_is}."
                )
            actor.count += 1
            return NamedActor(self._handle(actor), actor.interface)

    def current_actor(self) -> NamedActor | None:
        with self.lock:
            actor = self._actors.get(context.get().actor_id)
            if actor is None:
                return None
            actor.count += 1
            return NamedActor(self._handle(actor), actor.interface)

    def list_actors(self) -> list[ActorInfo]:
        self._settle()
        with self.lock:
            live = [a for a in self._actors.values() if a.state is not State.DEAD]
            return [*self._dead_actors, *map(self._info, live)]

    def live_actors(self) -> list[int]:
        """Ids of those that have handles."""
        return [id_ for id_, actor in self._actors.items() if actor.count]

    def list_tasks(self) -> list[dict[str, Any]]:
        self._settle()
        return listing.list_tasks(self)

    def list_objects(self) -> list[dict[str, Any]]:
        self._settle()
        return listing.list_objects(self)

    def list_workers(self) -> list[dict[str, Any]]:
        self._settle()
        return listing.list_workers(self)

    def _info(self, actor: Actor) -> ActorInfo:
        namespace, name = self._name_key(actor.options.name, actor.options.namespace)
        if actor.state is State.DEAD:
            state = ActorState.DEAD
        elif actor.state is not State.STARTING:
            state = ActorState.ALIVE
        elif actor.num_restarts:
            state = ActorState.RESTARTING
        else:
            state = ActorState.PENDING_CREATION
        return ActorInfo(
            actor_id=actor.id,
            class_name=actor.class_name,
            state=state,
            name=name or None,
            namespace=namespace if name else "",
            num_restarts=actor.num_restarts,
            pid=os.getpid() if state is ActorState.ALIVE else 0,
            is_detached=actor.is_detached,
            death_cause=actor.death_cause,
        )

    # Waiting --------------------------------------------------------------------------

    def get(
        self, refs: Sequence[ObjectRef[Any]], timeout: float | None, copy: bool
    ) -> list[Any]:
        self.enter()
        since = self.record.now()
        with self.lock:
            entries = [self.entry(ref) for ref in refs]
            pending = list({id(e): e for e in entries if not e.ready}.values())
            # With a timeout this thread may have to go on before they have ended.
            needed = self._needed(pending) if timeout is None else ()
        if pending and not any(entry.error for entry in entries):
            wait = Wait(
                lambda: self._describe("get", pending), timeout=timeout, pending=pending
            )
            self._block_for(pending, len(pending), wait, needed, or_error=True)
        self.record.got([ref._id for ref in refs], since)
        for entry in entries:
            if entry.error is not None:
                raise self.load_error(entry.error)
        late = [entry for entry in entries if not entry.ready]
        if late:
            raise GetTimeoutError(
                f"{self._describe('get', late)}: {len(late)} of {len(entries)} values "
                f"did not come within {timeout} s. The work goes on; wait longer, or "
                "find out what it waits for."
            )
        return [self.load_ref(ref, copy) for ref in refs]

    def entry(self, ref: ObjectRef[Any]) -> Entry:
        if ref._counter is not self:
            raise EngineError(
                f"{ref!r} is of an earlier session, which ended with skate.shutdown()."
            )
        return self.objects[ref]

    def _needed(self, pending: list[Entry]) -> set[Call]:
        """The units without which ``pending`` cannot all be ready."""
        needed: set[Call] = set()
        entries = deque(pending)
        while entries:
            call = entries.popleft().producer
            if call is not None and call not in needed:
                needed.add(call)
                entries.extend(self.objects[ref] for ref in call.argument_refs())
        return needed

    def _block_for(
        self,
        pending: list[Entry],
        missing: int,
        wait: Wait,
        needed: Collection[Call] = (),
        *,
        or_error: bool = False,
    ) -> None:
        """Block until ``missing`` of ``pending`` are ready, or one of them failed."""

        def came(entry: Entry) -> None:
            nonlocal missing
            missing -= 1
            if missing <= 0 or (or_error and entry.error is not None):
                self.baton.answer(wait)

        with self.lock:
            for entry in pending:
                if entry.ready:  # another thread was here between two locks
                    came(entry)
                else:
                    entry.callbacks.append(came)
        try:
            if wait.deadline is not None and wait.deadline <= time.monotonic():
                self._settle()
            else:
                self.baton.block(wait, needed)
        finally:
            with self.lock:
                for entry in pending:
                    if came in entry.callbacks:
                        entry.callbacks.remove(came)

    def wait(
        self, refs: list[ObjectRef[Any]], num_returns: int, timeout: float | None
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        check_refs("skate.wait", refs)
        check_distinct("skate.wait", refs)
        self.enter()
        with self.lock:
            entries = [self.entry(ref) for ref in refs]
            pending = [entry for entry in entries if not entry.ready]
        missing = num_returns - (len(entries) - len(pending))
        if missing > 0:
            wait = Wait(
                lambda: self._describe("wait", pending),
                timeout=timeout,
                pending=pending,
            )
            self._block_for(pending, missing, wait)
        ready: list[ObjectRef[Any]] = []
        others: list[ObjectRef[Any]] = []
        for ref, entry in zip(refs, entries, strict=True):
            chosen = ready if entry.ready and len(ready) < num_returns else others
            chosen.append(ref)
        return ready, others

    def watch(self) -> InlineWatch:
        self.enter()
        return InlineWatch(self)

    def future(self, ref: ObjectRef[Any], /) -> Future[Any]:
        self.enter()
        if not holds_baton():
            return self._futures.submit(ref)
        future = DrivenFuture(self, ref)
        completion = Completion(self.baton.tasks, future)
        with self.lock:
            entry = self.entry(ref)
            if entry.ready:
                self.baton.post(completion)
            else:
                entry.callbacks.append(lambda _: self.baton.post(completion))
        return future

    def ready_future(self, ref: ObjectRef[Any], /) -> Future[None]:
        self.enter()
        if not holds_baton():
            return self._futures.submit(ref, with_value=False)
        future: Future[None] = Future()

        def came(_: Entry) -> None:
            if begin(future):  # else it was given up
                future.set_result(None)

        with self.lock:
            entry = self.entry(ref)
            if entry.ready:
                came(entry)
            else:
                entry.callbacks.append(came)
        return future

    def _settle(self) -> None:
        """Let what can run do so: elsewhere it would have run by now.

        For some rounds only: there are programs that always have something to run.
        """
        self.enter()
        for _ in range(_SETTLING_ROUNDS):
            self.baton.block(Wait(lambda: "its turn", timeout=0))
            if not self.baton.crowded():
                break
        self.enter()

    # Groups ---------------------------------------------------------------------------

    def join_group(
        self, name: str, rank: int, world_size: int, timeout: float | None
    ) -> Group:
        self.enter()
        with self.lock:
            meeting = self._meetings.get(name)
            if meeting is None or meeting.is_over:
                meeting = self._meetings[name] = Meeting(self.baton, name, world_size)
            place = meeting.join(rank, world_size)
        group = InlineGroup(place, self._leave_group, self._dropped_groups)
        try:
            meeting.meet(rank, ("join",), (), lambda _: None, timeout)
        except BaseException:
            group.close()
            raise
        return group

    def _leave_group(self, place: Place) -> None:
        meeting = place.meeting
        with self.lock:
            is_last = meeting.leave(place.rank)
            if is_last and self._meetings.get(meeting.name) is meeting:
                del self._meetings[meeting.name]

    # The session ----------------------------------------------------------------------

    def context(self) -> TaskContext:
        return context.get()

    def create_placement_group(
        self, bundles: Sequence[Mapping[str, float]], strategy: str, name: str
    ) -> str:
        self.enter()
        info = GroupInfo.of(bundles, strategy, name, self.resources.total())
        with self.lock:
            return self.groups.create(info)

    def remove_placement_group(self, group: str) -> None:
        self._settle()
        with self.lock:
            self.groups.remove(group)
            for actor in list(self._actors.values()):
                if group_of(actor.grant.amounts()) == group:
                    actor.die("its placement group was removed")
            for call in list(self.unfinished.values()):
                if isinstance(call, Task) and group_of(call.demand) == group:
                    call.group_removed()
            self.baton.kick()
        stop_if_interrupted()

    def placement_groups(self, group: str | None = None) -> dict[str, GroupInfo]:
        self._settle()
        with self.lock:
            infos = self.groups.infos()
        return {k: v for k, v in infos.items() if group in (None, k)}

    def assigned_resources(self) -> dict[str, float]:
        self.enter()
        here = context.get()
        actor = self._actors.get(here.actor_id)
        grant = this_grant() if actor is None else actor.grant
        return {} if grant is None else grant.amounts()

    def nodes(self) -> list[dict[str, Any]]:
        return [this_machine(self)]

    def cluster_resources(self) -> dict[str, float]:
        self.enter()
        return self.resources.total()

    def available_resources(self) -> dict[str, float]:
        self._settle()
        with self.lock:
            return self.resources.available()

    def statistics(self) -> dict[str, int]:
        self._settle()
        with self.lock:
            return {**self.objects.statistics(), "workers": len(self.baton.workers)}

    def has_died(self) -> bool:
        return False

    def shutdown(self) -> None:
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        threads = [worker.thread for worker in self.baton.workers]
        ended = EngineError("skate was shut down while this call waited.")
        with self.lock:
            self.baton.forget_units()
            for actor in list(self._actors.values()):
                actor.die("skate was shut down")
            self.baton.stop(self.baton.tasks)
            self.baton.stop_foreign(ended)
        # The threads that were blocked unwind now, one after the other. One that
        # computes (after Ctrl-C) cannot be stopped; it is a daemon.
        self.baton.unwind(timeout=2.0)
        self._futures.close()
        for thread in threads:
            thread.join(timeout=1.0)
        with self.lock:
            for actor in self._actors.values():
                actor.instance = None
            self._actors.clear()
            self.streams.clear()
            self.objects.clear()

    def failed(self, ref: ObjectRef[Any]) -> bool:
        with self.lock:
            return self.entry(ref).error is not None

    def why(self, ref: ObjectRef[Any]) -> str:
        return why(self, ref)

    def observer(self) -> Record:
        return self.record

    # For people -----------------------------------------------------------------------

    @staticmethod
    def _describe(call: str, pending: list[Entry]) -> str:
        names = sorted({e.producer.name for e in pending if e.producer is not None})
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        return f"{call} of {shown or 'a value'}"

    def _report(self, waits: list[Wait], stuck: list[Unit]) -> str:
        lines = [f"  {wait.who} waits in {wait.about()}" for wait in waits]
        free = self.resources.describe_free()
        lines += [
            f"  {unit.name} needs {self.resources.describe(unit.demand)}; free: {free}"
            for unit in stuck
            if isinstance(unit, Call)
        ]
        lines += [f"  {actor.describe()}" for actor in self._actors.values()]
        return (
            "everything waits, and nothing can run that would end a wait:\n"
            + "\n".join(lines)
            + "\nBreak the circle, or give one of the calls a timeout."
        )
