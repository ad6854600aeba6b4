"""Actors: a thread of their own, their calls in order, their life and death."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import inspect
import itertools
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from ..._ref import ObjectRef
from ...exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    RuntimeEnvSetupError,
    TaskPlacementGroupRemoved,
)
from .. import serialize
from ..actor_methods import BUILT_IN_METHODS, ActorExit, find_method
from ..protocol import label_of
from ..receiving import LoopReceiver
from .baton import Home, Stopped, context
from .loop import BatonLoop
from .units import CANCELLED, Call

if TYPE_CHECKING:
    from ..protocol import ActorSpec, MethodSpec, TaskContext
    from .engine import InlineEngine
    from .objects import Stored
    from .resources import Grant
    from .units import Arguments, Exported


class State(enum.Enum):
    STARTING = enum.auto()
    ALIVE = enum.auto()
    ENDING = enum.auto()  # the last handle is gone, and so are the calls
    LEAVING = enum.auto()  # it ends itself, after the calls that run
    DEAD = enum.auto()


class Actor:
    """One actor. The caller of its methods holds the engine's lock."""

    def __init__(
        self,
        engine: InlineEngine,
        spec: ActorSpec,
        exported: Exported,
        arguments: Arguments,
        owner: int,
    ) -> None:
        self.id = engine.new_id()
        self.count = 1  # handles
        self.label = label_of(spec.cls)
        self.owner = owner  # the actor that created it, and with which it ends; 0: none
        self.interface = spec.interface
        self.options = spec.options
        self.state = State.STARTING
        self.num_restarts = 0
        self.death_cause = ""
        self.instance: Any = None
        self.home = Home()
        self.loop: BatonLoop | None = None
        self.is_async = spec.is_async
        self.receiver_name = spec.receiver
        self.receiver: LoopReceiver | None = None
        self._engine = engine
        self.env = engine.env_of(spec.options)
        self._make = exported, arguments  # what a restart is made from
        # How many calls may run at once: in no group, then in each of the groups.
        self._limits = [
            spec.options.max_concurrency,
            *spec.options.concurrency_groups.values(),
        ]
        self._queues: dict[int, deque[ActorCall]] = {}  # by caller
        self._unanswered: Counter[int] = Counter()  # by caller
        self._lacking: dict[ActorCall, None] = {}  # out of order: they lack arguments
        self._ready: deque[ActorCall] = deque()
        self.running: dict[ActorCall, None] = {}  # in the order in which they started
        self.construction = ActorStart(self, exported, arguments)
        self.demand = exported.demand
        self._failure: bytes | None = (
            None  # what its calls raise, if not ActorDiedError
        )
        if self.is_detached:
            self.count += 1

    def start(self) -> None:
        self.construction.await_arguments(self.construction.post)

    @property
    def class_name(self) -> str:
        return self.interface.class_name

    @property
    def is_detached(self) -> bool:
        return self.options.lifetime == "detached"

    @property
    def one_at_a_time(self) -> bool:
        return self._limits == [1]

    @property
    def title(self) -> str:
        name = "" if self.options.name is None else f" {self.options.name!r}"
        return f"actor {self.class_name}{name}"

    @property
    def grant(self) -> Grant:
        """The resources that it holds while it lives."""
        return self.construction._grant

    def describe(self) -> str:
        return f"{self.title}: {self.state.name.lower()}, runs {len(self.running)}"

    # Calls ---------------------------------------------------------------------------

    def unanswered(self, caller: int) -> int:
        return self._unanswered[caller]

    def submit(self, call: ActorCall) -> None:
        """Queue ``call`` behind the earlier ones of the same caller."""
        if self.state is State.DEAD:
            call.fulfil(self._death())
            return
        caller = call.caller
        self._unanswered[caller] += 1
        if call.method.out_of_order:
            self._lacking[call] = None
            call.await_arguments(lambda: self._make_ready(call))
        else:
            self._queues.setdefault(caller, deque()).append(call)
            call.await_arguments(lambda: self._advance(caller))

    def answered(self, call: ActorCall) -> None:
        self._unanswered[call.caller] -= 1

    def _make_ready(self, call: ActorCall) -> None:
        if call not in self._lacking:
            return  # it was withdrawn, or the actor has ended
        del self._lacking[call]
        self._ready.append(call)
        self._dispatch()

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
        """Start what may start; end the actor if nothing is left to do."""
        if self.state is not State.ALIVE:
            return
        running = Counter(call.method.group for call in self.running)
        held_back: deque[ActorCall] = deque()
        failed: list[ActorCall] = []
        while self._ready:
            call = self._ready.popleft()
            group = call.method.group
            if call.failure is not None:
                failed.append(call)
            elif running[group] < self._limits[group]:
                running[group] += 1
                self.running[call] = None
                call.home = self.home
                if self.loop is not None:
                    self.loop.call_soon_threadsafe(call.start_in, self.loop)
                else:
                    self._engine.baton.post(call)
            else:
                held_back.append(call)
        self._ready = held_back
        # Not before all of the above: their outputs may be arguments of other calls,
        # which come here, too.
        for call in failed:
            assert call.failure is not None
            call.fulfil(call.failure)
        self.end_if_unused()

    def withdraw(self, call: ActorCall) -> bool:
        """Forget a call that has not started; False if it is too late."""
        for caller, queue in self._queues.items():
            if call in queue:
                queue.remove(call)
                self._advance(caller)
                return True
        if call in self._lacking:
            del self._lacking[call]
        elif call in self._ready:
            self._ready.remove(call)
        elif self._engine.baton.withdraw(call):
            self.call_ended(call)
            return True
        else:
            return False
        self._dispatch()
        return True

    def cancel_in_loop(self, task: asyncio.Task[None]) -> None:
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(task.cancel)

    def started(self) -> None:
        if self.state is State.STARTING:
            self.state = State.ALIVE
            self._dispatch()

    def call_ended(self, call: ActorCall) -> None:
        self.running.pop(call, None)
        if self.state is State.LEAVING:
            self.end_if_unused()
        else:
            self._dispatch()

    # The end -------------------------------------------------------------------------

    def end_if_unused(self) -> None:
        """End the actor when nobody can call it any more and nothing is left to do."""
        if self.state is State.LEAVING and not self.running:
            self._end_quietly()
            return
        waiting = self._queues or self._lacking or self._ready
        unused = not (self.count or waiting or self.running)
        if unused and self.state is State.ALIVE:
            self.state = State.ENDING
            self._end_quietly()

    def _end_quietly(self) -> None:
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.loop.stop)
        else:
            self._engine.baton.post(ActorEnd(self))

    def exit(self, error: ActorExit | SystemExit) -> None:
        """Its code exits: as elsewhere, where that ends the actor's process."""
        code = None if isinstance(error, ActorExit) else error.code
        with self._engine.lock:
            if code in (None, 0):
                self.leave()
            else:
                self.crash(f"its process exited with status {code}", restart=True)

    def leave(self) -> None:
        """End on purpose: what runs still ends, what has not started fails."""
        if self.state is State.ALIVE:
            self.state = State.LEAVING
            self.death_cause = "it ended itself by exit_actor"
            for call in self._take_waiting():
                call.fulfil(self._death())
            if self.receiver is not None:
                assert self.loop is not None
                self.loop.call_soon_threadsafe(
                    self._end_receiver, self.loop, self.receiver
                )

    def _end_receiver(self, loop: BatonLoop, receiver: LoopReceiver) -> None:
        """It gets what has come; nobody answers what it has kept then."""
        if receiver.has_calls:
            receiver.give()
        loop.call_soon(self._die_at_last)  # behind the calls that it has answered

    def _die_at_last(self) -> None:
        with self._engine.lock:
            self.die(self.death_cause)

    def crash(self, cause: str, *, restart: bool) -> None:
        """Its process would have died. Restart it if that is left, else end it."""
        limit = self.options.max_restarts
        started = self.state in (State.STARTING, State.ALIVE)
        if not started or not restart or 0 <= limit <= self.num_restarts:
            self.die(cause)
            return
        self.num_restarts += 1
        self.state = State.STARTING
        lost, self.running = list(self.running), {}
        again = []
        for call in lost:
            retry = call.again()
            if retry is not None:
                again.append(retry)
            error = unavailable(f"{self.title} restarts, for {cause}.")
            call.fulfil(CANCELLED if call.cancelled else error)
        self._ready.extendleft(reversed(again))
        self._vacate()
        self.instance = self.receiver = None
        self.loop = None
        self.home = Home()
        self.construction = ActorStart(self, *self._make)
        self.start()

    def die(self, cause: str) -> None:
        """Fail all calls, give the resources back, end the threads."""
        if self.state is State.DEAD:
            return
        self.state = State.DEAD
        self.death_cause = self.death_cause or cause
        calls = [*self.running, *self._take_waiting()]
        self.running.clear()
        for call in calls:
            call.fulfil(self._death())
        self._engine.actor_died(self)
        self._vacate()

    def _take_waiting(self) -> list[ActorCall]:
        queued = itertools.chain(*self._queues.values())
        calls = [*self._ready, *queued, *self._lacking]
        self._ready.clear()
        self._lacking.clear()
        self._queues.clear()
        return calls

    def _vacate(self) -> None:
        if not self.construction.started:
            self.construction.withdraw()
        self.construction.release()
        self._engine.end_actors_of(self)
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._engine.baton.stop(self.home)

    def fail(self, error: RuntimeEnvSetupError) -> None:
        """It cannot be made at all: its calls raise ``error``."""
        self._failure = serialize.dump_system_error(error)
        self.die(f"its runtime_env could not be set up: {error}")

    def _death(self) -> bytes:
        """The error of calls that come too late."""
        if self._failure is not None:
            return self._failure
        return died(f"{self.title} is dead: {self.death_cause}.")


def died(reason: str) -> bytes:
    return serialize.dump_system_error(ActorDiedError(reason))


def unavailable(reason: str) -> bytes:
    return serialize.dump_system_error(ActorUnavailableError(reason))


class ActorStart(Call):
    """The constructor. Its resources stay with the actor while it lives."""

    def __init__(self, actor: Actor, exported: Exported, arguments: Arguments) -> None:
        name = f"{actor.class_name}.__init__"
        super().__init__(actor._engine, name, arguments, 0, actor.home, exported.demand)
        del self.engine.unfinished[self.task_id]  # nobody can cancel it
        self.actor_id = actor.id
        self.env = actor.env
        self.label = f"{actor.label}.__init__"
        self.engine.record.submitted(self)
        self._actor = actor
        self._class = exported
        self._holds_resources = False
        self._loop: BatonLoop | None = None

    def post(self) -> None:
        if self._is_over():
            return
        if self.failure is not None:
            text = serialize.load_error(self.failure)
            self._actor.die(f"an argument of its constructor failed: {text}")
        else:
            self.engine.baton.post(self)

    def _is_over(self) -> bool:
        actor = self._actor
        return actor.construction is not self or actor.state is State.DEAD

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
            loop = self._loop
            if loop is not None and actor.construction is self:
                with self._surroundings(lent_when_blocked=None):
                    self._run_forever(loop)
                with self.engine.lock:
                    if actor.loop is loop:  # else it has been restarted
                        actor.die("its last handle was dropped")
        finally:
            if self._loop is not None:
                self._loop.end()
            if actor.state is State.DEAD:
                actor.instance = actor.receiver = None

    def _run_forever(self, loop: BatonLoop) -> None:
        while True:
            try:
                loop.run_forever()
                return
            except SystemExit as error:  # of a task that the program has started
                self._actor.exit(error)
                with self.engine.lock:
                    self._actor.end_if_unused()

    def execute(self) -> Any:
        args, kwargs = self.load_arguments()
        actor = self._actor
        if actor.is_async:
            self._loop = BatonLoop(self.engine.baton, actor.class_name)
            actor.loop = self._loop
            asyncio.set_event_loop(self._loop)
        actor.instance = self._class.load()(*args, **kwargs)
        if actor.receiver_name is not None:
            actor.receiver = LoopReceiver(
                actor.instance, actor.receiver_name, actor.exit
            )

    def finish(self, outcome: list[Stored] | bytes) -> None:
        actor = self._actor
        with self.engine.lock:
            if actor.construction is not self:
                return  # it was restarted meanwhile
            if isinstance(outcome, bytes):
                error = serialize.load_error(outcome)
                if isinstance(error, RuntimeEnvSetupError):
                    actor.fail(error)
                    return
                if isinstance(error, TaskPlacementGroupRemoved):
                    actor.die("its placement group was removed")
                    return
                text = getattr(error, "remote_traceback", "") or str(error)
                actor.die(f"its constructor raised.\n\n{text}")
            else:
                self.fulfil(outcome)
                actor.started()

    def context(self) -> TaskContext:
        return super().context()._replace(num_restarts=self._actor.num_restarts)


class ActorCall(Call):
    """A call of a method."""

    def __init__(
        self, actor: Actor, method: MethodSpec, arguments: Arguments, caller: int
    ) -> None:
        name = f"{actor.class_name}.{method.name}"
        super().__init__(
            actor._engine,
            name,
            arguments,
            method.num_returns,
            actor.home,
            {},
            method.window,
        )
        self.actor_id = actor.id
        self.env = actor.env
        self.method = method
        self.caller = caller
        self.actor = actor
        self._retries = method.max_task_retries
        self._retry_on = method.retry_exceptions
        self._given: Arguments | None = arguments if self._retries else None
        self._answered = False
        self._task: asyncio.Task[None] | None = None  # in the loop of an async actor

    def begin(self) -> None:
        # A call of an actor that does one thing at a time lends the actor's CPUs.
        if self.actor.one_at_a_time:
            self._grant = self.actor.construction._grant

    def again(self) -> ActorCall | None:
        """Another attempt, which takes over the refs; None if none is left.

        The thread that runs this one may still unwind: what it says is not heard.
        """
        if self._retries == 0 or self._given is None or self.cancelled:
            return None
        retry = ActorCall(self.actor, self.method, self._given, self.caller)
        retry._retries = self._retries - (self._retries > 0)
        retry.take_over(self)
        retry._answered, self._answered = self._answered, True
        for output in retry.outputs:
            self.engine.objects.produced_by(output, retry)
        return retry

    @property
    def gpus(self) -> tuple[int | str, ...]:
        return self.actor.grant.gpus.ids

    def pause(self) -> None:
        pass

    def withdraw(self) -> bool:
        return self.actor.withdraw(self)

    def interrupt(self) -> None:
        if self._task is not None:
            self.actor.cancel_in_loop(self._task)
        elif self.stream is not None and self.actor.loop is None:
            self._throw = True  # at its next yield, or the one where it waits
            self.stream.wake()

    def execute(self) -> Any:
        args, kwargs = self.load_arguments()
        receiver = self.actor.receiver
        if receiver is not None and self.method.name not in BUILT_IN_METHODS:
            return receiver.accept(self.method.name, args, kwargs)
        return find_method(self.actor.instance, self.method.name)(*args, **kwargs)

    def start_in(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.cancelled:
            self.finish(CANCELLED)
            return
        self.started = True
        task = loop.create_task(self._run_in_loop(), name=self.name)
        self._task = task  # the loop itself refers to tasks weakly
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() and self.outputs:  # before its first step
            self.finish(CANCELLED)

    async def _run_in_loop(self) -> None:
        context.set(self.context())
        while (outcome := await self._attempt()) is None:
            await asyncio.sleep(0)
        self.finish(outcome)

    async def _attempt(self) -> list[Stored] | bytes | None:
        """What comes out; None if it is to be tried again."""
        try:
            if self.actor.state is State.LEAVING:
                raise ActorExit
            value = self.execute()
            if self.stream is not None:
                self.check_generator(value)
                await self._stream_in_loop(value)
                value = None
            elif inspect.isawaitable(value) and not isinstance(value, ObjectRef):
                value = await value
            return self.store(value)
        except Stopped:  # the loop has been told, too
            return self.stopped_error()
        except asyncio.CancelledError as error:
            if self.cancelled:
                return CANCELLED
            return serialize.dump_error(error, self.name)
        except BaseException as error:  # all of it is the call's result
            return None if self.tries_again(error) else self.failed(error)

    def failed(self, error: BaseException) -> bytes:
        if isinstance(error, (ActorExit, SystemExit)):
            self.actor.exit(error)
            return self.actor._death()
        return super().failed(error)

    async def _stream_in_loop(self, generator: Any) -> None:
        """Send what a generator of either kind yields, as long as somebody reads it."""
        stream = self.stream
        loop = asyncio.get_running_loop()
        assert stream is not None
        items = generator
        if inspect.isgenerator(generator):
            items = _take_turns(generator)
        try:
            async for item in items:
                self.send_item(item)
                while not stream.has_room():
                    room = asyncio.Event()
                    come = functools.partial(loop.call_soon_threadsafe, room.set)
                    with self.engine.lock:
                        stream.when_room(come)
                    await room.wait()
                if stream.closed:
                    break
        finally:
            await items.aclose()

    def stopped_error(self) -> bytes:
        return died(f"{self.actor.title} was killed while it ran {self.name}.")

    def fulfil(self, outcome: list[Stored] | bytes) -> None:
        if not self._answered:
            self._answered = True
            self.actor.answered(self)
        super().fulfil(outcome)

    def finish(self, outcome: list[Stored] | bytes) -> None:
        with self.engine.lock:
            self.fulfil(outcome)
            self.actor.call_ended(self)

    def context(self) -> TaskContext:
        return super().context()._replace(num_restarts=self.actor.num_restarts)


async def _take_turns(generator: Any) -> Any:
    """The items of an ordinary generator; others run between two of them."""
    with contextlib.closing(generator):
        for item in generator:
            yield item
            await asyncio.sleep(0)


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
        actor.instance = actor.receiver = None
        with actor._engine.lock:
            actor.die("its last handle was dropped")
