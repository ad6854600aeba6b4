"""Actors: a thread of their own, their calls in order, their life and death."""

from __future__ import annotations

import asyncio
import enum
import inspect
from collections import deque
from typing import TYPE_CHECKING, Any

from ...exceptions import ActorDiedError
from .. import serialize
from ..protocol import label_of
from .baton import Home, Stopped, context
from .loop import BatonLoop
from .units import Call

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..protocol import ActorSpec
    from .engine import InlineEngine
    from .objects import Stored
    from .resources import Grant
    from .units import Arguments, Exported


class State(enum.Enum):
    STARTING = enum.auto()
    ALIVE = enum.auto()
    ENDING = enum.auto()  # the last handle is gone, and so are the calls
    DEAD = enum.auto()


class Actor:
    """One actor. The caller of its methods holds the engine's lock."""

    def __init__(
        self,
        engine: InlineEngine,
        spec: ActorSpec,
        exported: Exported,
        arguments: Arguments,
    ) -> None:
        self.id = engine.new_id()
        self.count = 1  # handles
        self.class_name = spec.name
        self.label = label_of(spec.cls)
        self.methods: Mapping[str, Mapping[str, Any]] = spec.methods
        self.state = State.STARTING
        self.instance: Any = None
        self.home = Home()
        self.loop: BatonLoop | None = None
        self.is_async = spec.is_async
        self.name = spec.options.name
        self._engine = engine
        self._most_at_once = spec.options.max_concurrency
        self._death = b""  # the error of calls that come too late
        self._queues: dict[int, deque[ActorCall]] = {}  # by caller
        self._ready: deque[ActorCall] = deque()
        self.running: set[ActorCall] = set()
        self._start = ActorStart(self, exported, arguments)
        self.demand = exported.demand

    def start(self) -> None:
        self._start.await_arguments(self._start.post)

    @property
    def title(self) -> str:
        name = "" if self.name is None else f" {self.name!r}"
        return f"actor {self.class_name}{name}"

    @property
    def grant(self) -> Grant:
        """The resources that it holds while it lives."""
        return self._start._grant

    def describe(self) -> str:
        return f"{self.title}: {self.state.name.lower()}, runs {len(self.running)}"

    # Calls ---------------------------------------------------------------------------

    def submit(self, call: ActorCall, caller: int) -> None:
        """Queue ``call`` behind the earlier ones of the same caller."""
        if self.state is State.DEAD:
            call.fulfil(self._death)
            return
        self._queues.setdefault(caller, deque()).append(call)
        call.await_arguments(lambda: self._advance(caller))

    def _advance(self, caller: int) -> None:
        queue = self._queues.get(caller)
        if queue is None:
            return
        while queue and not queue[0].missing:
            self._ready.append(queue.popleft())
        if not queue:
            del self._queues[caller]
        self._dispatch()

    def _dispatch(self) -> None:
        while (
            self.state is State.ALIVE
            and self._ready
            and len(self.running) < self._most_at_once
        ):
            call = self._ready.popleft()
            if call.failure is not None:
                call.fulfil(call.failure)
                continue
            self.running.add(call)
            if self.loop is not None:
                self.loop.call_soon_threadsafe(call.start_in, self.loop)
            else:
                self._engine.baton.post(call)

    def started(self) -> None:
        if self.state is State.STARTING:
            self.state = State.ALIVE
            self._dispatch()
            self.end_if_unused()

    def call_ended(self, call: ActorCall) -> None:
        self.running.discard(call)
        self._dispatch()
        self.end_if_unused()

    # The end -------------------------------------------------------------------------

    def end_if_unused(self) -> None:
        """End the actor when nobody can call it any more and nothing is left to do."""
        unused = not (self.count or self._queues or self._ready or self.running)
        if unused and self.state is State.ALIVE:
            self.state = State.ENDING
            if self.loop is not None:
                self.loop.call_soon_threadsafe(self.loop.stop)
            else:
                self._engine.baton.post(ActorEnd(self))

    def die(self, error: bytes) -> None:
        """Fail all calls with ``error``, give the resources back, end the threads."""
        if self.state is State.DEAD:
            return
        self.state = State.DEAD
        self._death = error
        calls = [*self.running, *self._ready]
        for queue in self._queues.values():
            calls.extend(queue)
        self.running.clear()
        self._ready.clear()
        self._queues.clear()
        for call in calls:
            call.fulfil(error)
        self._start.release()
        self._engine.actor_died(self)
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._engine.baton.stop(self.home)


def died(reason: str) -> bytes:
    return serialize.dump_system_error(ActorDiedError(reason))


class ActorStart(Call):
    """The constructor. Its resources stay with the actor while it lives."""

    def __init__(self, actor: Actor, exported: Exported, arguments: Arguments) -> None:
        name = f"{actor.class_name}.__init__"
        super().__init__(actor._engine, name, arguments, 0, actor.home, exported.demand)
        self.actor_id = actor.id
        self.label = f"{actor.label}.__init__"
        self.engine.record.submitted(self)
        self._actor = actor
        self._class = exported
        self._holds_resources = False
        self._failed = b""

    def post(self) -> None:
        if self.failure is not None:
            text = serialize.load_error(self.failure)
            self._actor.die(
                died(
                    f"{self._actor.title} never started: an argument of its "
                    f"constructor failed: {text}"
                )
            )
        else:
            self.engine.baton.post(self)

    def begin(self) -> None:
        super().begin()
        self._holds_resources = True

    def release(self) -> None:
        if self._holds_resources:
            self._holds_resources = False
            self._grant.give()

    def run(self) -> None:
        actor = self._actor
        try:
            super().run()
            loop = actor.loop
            if loop is not None and actor.state is not State.DEAD:
                with self._surroundings(lent_when_blocked=None):
                    loop.run_forever()
                with self.engine.lock:
                    actor.die(died(f"{actor.title} has ended."))
        finally:
            if actor.loop is not None:
                actor.loop.end()
            if actor.state is State.DEAD:
                actor.instance = None

    def execute(self) -> Any:
        args, kwargs = self.load_arguments()
        actor = self._actor
        if actor.is_async:
            actor.loop = BatonLoop(self.engine.baton, actor.class_name)
            asyncio.set_event_loop(actor.loop)
        actor.instance = self._class.load()(*args, **kwargs)

    def finish(self, outcome: list[Stored] | bytes) -> None:
        actor = self._actor
        with self.engine.lock:
            if isinstance(outcome, bytes):
                error = serialize.load_error(outcome)
                text = getattr(error, "remote_traceback", "")
                actor.die(
                    died(f"the constructor of {actor.class_name} raised.\n\n{text}")
                )
            else:
                self.fulfil(outcome)
                actor.started()


class ActorCall(Call):
    """A call of a method."""

    def __init__(
        self, actor: Actor, method: str, arguments: Arguments, num_returns: int
    ) -> None:
        name = f"{actor.class_name}.{method}"
        super().__init__(actor._engine, name, arguments, num_returns, actor.home, {})
        self.actor_id = actor.id
        # A call of an actor that does one thing at a time lends the actor's CPUs.
        if actor._most_at_once == 1:
            self._grant = actor._start._grant
        self.actor = actor
        self._method = method

    def begin(self) -> None:
        pass  # the actor has its resources

    def execute(self) -> Any:
        args, kwargs = self.load_arguments()
        return getattr(self.actor.instance, self._method)(*args, **kwargs)

    def start_in(self, loop: asyncio.AbstractEventLoop) -> None:
        task = loop.create_task(self._run_in_loop(), name=self.name)
        self._keep_alive = task  # the loop itself refers to tasks weakly

    async def _run_in_loop(self) -> None:
        context.set(self.context())
        outcome: list[Stored] | bytes = b""
        try:
            value = self.execute()
            if inspect.isawaitable(value):
                value = await value
            outcome = self.store(value)
        except Stopped:  # the loop has been told, too
            outcome = self.stopped_error()
        except BaseException as error:  # all of it is the call's result
            outcome = serialize.dump_error(error, self.name)
        self.finish(outcome)

    def stopped_error(self) -> bytes:
        return died(f"{self.actor.title} was killed while it ran {self.name}.")

    def finish(self, outcome: list[Stored] | bytes) -> None:
        with self.engine.lock:
            self.fulfil(outcome)
            self.actor.call_ended(self)


class ActorEnd:
    """Lets go of the instance on the actor's own thread, where its ``__del__`` runs."""

    anywhere = False

    def __init__(self, actor: Actor) -> None:
        self.home = actor.home
        self._actor = actor

    def startable(self) -> bool:
        return True

    def begin(self) -> None:
        pass

    def run(self) -> None:
        actor = self._actor
        actor.instance = None
        with actor._engine.lock:
            actor.die(died(f"{actor.title} has ended."))
