"""Who runs: one thread at a time, in an order that depends on the program alone.

User code that the engine started runs only on the thread that holds the baton. A
thread that must wait in a skate call passes the baton on:

1. to a thread whose ``get`` or ``wait`` has been answered, first come first served;
2. else to the oldest unit (a task or a call of an actor) that can start, or to a
   thread that asked for another turn (a deadline, an event loop, a collective).

The driver's own code runs without the baton. Units run only while a driver thread
waits in a skate call, never behind its back.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
import time
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

from ...exceptions import DeadlockError, EngineError
from ..protocol import TaskContext

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from ..surroundings import Surroundings
    from .objects import Entry
    from .resources import Grant

# Tasks that run on the stack of the thread that waits for them, one inside the other,
# use up Python's recursion limit; deeper ones get a thread of their own.
_DEEPEST = 12


class Stopped(BaseException):
    """Unwinds a thread whose actor was killed, or whose session ends."""


DRIVER = TaskContext(0, 0, 0, "", is_driver=True)
context: ContextVar[TaskContext] = ContextVar("skate_task", default=DRIVER)


class Unit(Protocol):
    """Something that can be started: a task, or a call of an actor."""

    home: Home  # threads that may run it
    anywhere: bool  # it may run on the stack of a thread that waits for it

    def startable(self) -> bool:
        """True if its resources are free."""

    def begin(self) -> None:
        """Take the resources. The lock is held."""

    def run(self) -> None:
        """Run the user's code. Raises only Stopped and KeyboardInterrupt."""


class Home:
    """Where threads rest: one for all tasks, one for each actor."""

    def __init__(self) -> None:
        self.resting: list[Worker] = []
        self.busy: set[Worker] = set()
        self.closed = False


class Wait:
    """One thread in one skate call that blocks."""

    def __init__(
        self,
        about: Callable[[], str],
        *,
        timeout: float | None = None,
        idle: bool = False,
        pending: Sequence[Entry] = (),
    ) -> None:
        self.about = about  # what it waits for, for people
        self.pending = pending  # not refs: they would keep the values
        self.who = context.get().task_name or "the driver"
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.idle = idle  # nobody misses the answer: an event loop without work
        self.done = False
        self.error: BaseException | None = None  # raise this instead of returning
        self.turn = False  # its thread may leave the call
        self.queued = False
        self.handed = False
        self.gate = _closed_gate()
        self.patience = -1.0  # seconds that it sleeps for the baton; -1: any time
        self.thread = threading.current_thread()
        self.foreign = _here.worker is None  # a thread of the user's


def _closed_gate() -> threading.Lock:
    """A thread sleeps in ``acquire`` until another one calls ``release``."""
    gate = threading.Lock()
    gate.acquire()
    return gate


class _Here(threading.local):
    """What this thread is to the engine."""

    worker: Worker | None = None
    holds = False  # the baton
    depth = 0  # units that run on this stack, inside one another
    wait: Wait | None = None  # the innermost skate call that blocks it
    grant: Grant | None = None  # of the innermost unit
    interruptible: Interruptible | None = None  # the innermost unit, if it can be
    surroundings: Surroundings | None = None  # of the innermost unit


_here = _Here()


def this_worker() -> Worker | None:
    """The engine's thread that is running; None on a thread of the user's."""
    return _here.worker


def this_grant() -> Grant | None:
    """The resources of the innermost task on this thread."""
    return _here.grant


def holds_baton() -> bool:
    """True in code that the engine runs; False in the driver's own."""
    return _here.holds


def stop_if_interrupted() -> None:
    """Raise the KeyboardInterrupt that the innermost unit has yet to get."""
    unit = _here.interruptible
    if unit is not None and unit.interrupted:
        unit.interrupted = False
        raise KeyboardInterrupt


class Interruptible(Protocol):
    """A unit that can be told to stop while it is blocked."""

    wait: Wait | None  # the skate call that blocks it
    interrupted: bool  # it is to stop, and was not blocked


@contextlib.contextmanager
def holding(
    grant: Grant | None,
    unit: Interruptible | None = None,
    surroundings: Surroundings | None = None,
) -> Iterator[None]:
    """While it is open, this thread lends ``grant`` whenever it blocks for ``unit``.

    It finds itself in ``surroundings``, and leaves them whenever others may run.
    """
    if surroundings is not None:
        surroundings.enter()
    outer = _here.grant, _here.interruptible, _here.surroundings
    _here.grant, _here.interruptible, _here.surroundings = grant, unit, surroundings
    try:
        yield
    finally:
        if surroundings is not None:
            surroundings.leave()
        _here.grant, _here.interruptible, _here.surroundings = outer


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    """Leave the surroundings of what runs here: something else may run now."""
    surroundings, _here.surroundings = _here.surroundings, None
    if surroundings is not None:
        surroundings.leave()
    try:
        yield
    finally:
        _here.surroundings = surroundings
        if surroundings is not None:
            surroundings.enter()


class Baton:
    """Passes control between threads. ``lock`` guards all state of the engine."""

    def __init__(
        self,
        report: Callable[[list[Wait], list[Unit]], str],
        forget: Callable[[], None],
    ) -> None:
        self.lock = threading.RLock()
        self.tasks = Home()
        self._report = report
        # Act on what user code has dropped: called by who has the baton, and the lock,
        # before it looks for what comes next.
        self._forget = forget
        self._changed = threading.Condition(self.lock)
        self._answered: deque[Wait] = deque()
        self._queue: deque[Unit | Wait] = deque()
        self._parked: dict[Wait, None] = {}  # in the order in which they blocked
        self._deadlines: list[tuple[float, int, Wait]] = []
        self._sequence = itertools.count()
        self._taken = False
        self._num_busy = 0  # workers that run a unit
        self._unwinding: Wait | None = None
        self._outside = 0  # event loops that wait for the outside world
        self.workers: set[Worker] = set()

    # What may happen; the caller holds the lock ------------------------------------

    def post(self, unit: Unit) -> None:
        """``unit`` lacks nothing but its turn, and perhaps resources."""
        self._queue.append(unit)
        self._changed.notify_all()

    def answer(self, wait: Wait, error: BaseException | None = None) -> None:
        """``wait`` is over; its thread comes before what has not started yet."""
        self._end(wait, error, self._answered)

    def give_turn(self, wait: Wait) -> None:
        """``wait`` is over; its thread goes on after what is queued now."""
        self._end(wait, None, self._queue)

    def _end(
        self,
        wait: Wait,
        error: BaseException | None,
        queue: deque[Wait] | deque[Unit | Wait],
    ) -> None:
        if wait.done:
            return
        wait.done = True
        wait.error = error
        if wait in self._parked and not wait.queued:
            wait.queued = True
            queue.append(wait)
        self._changed.notify_all()
        self.kick()

    def kick(self) -> None:
        """If nobody has the baton and a driver thread waits for it, hand it over."""
        if self._taken:
            return
        waits = (w for w in self._parked if w.foreign and (w.queued or not w.idle))
        driver = next(waits, None)
        if driver is None:
            return
        self._taken = True
        try:
            self._hand_to(self._next() or driver)
        except BaseException as error:
            self._hand_to(driver)  # if there is no thread for it, it raises the error
            if not isinstance(error, RuntimeError):
                raise  # Ctrl-C

    def stop(self, home: Home) -> None:
        """End the threads of ``home``: those at rest now, the others unwinding."""
        home.closed = True
        for worker in home.resting:
            worker.leave()
        home.resting.clear()
        for worker in home.busy:
            if worker.wait is not None:
                # An answer that it has not seen yet does not save it.
                worker.wait.error = Stopped()
                self.answer(worker.wait, Stopped())

    def interrupt(self, wait: Wait, error: BaseException) -> None:
        """``wait`` raises ``error``, even if it was answered and has not seen it."""
        wait.error = error
        self.answer(wait, error)

    def withdraw(self, unit: Unit) -> bool:
        """Forget a unit that was posted; False if it has started."""
        if unit not in self._queue:
            return False
        self._queue.remove(unit)
        return True

    def stop_foreign(self, error: BaseException) -> None:
        """Every thread of the user's that waits raises ``error``."""
        for wait in list(self._parked):
            if wait.foreign:
                self.answer(wait, error)

    def forget_units(self) -> None:
        """Nothing that has not started starts any more."""
        self._queue = deque(item for item in self._queue if isinstance(item, Wait))

    def unwind(self, timeout: float) -> None:
        """Let threads that were stopped end; give up after ``timeout`` seconds."""
        wait = Wait(lambda: "the end of the session", timeout=timeout)
        wait.patience = timeout
        with self.lock:
            self._unwinding = wait
            if not self._num_busy:
                return
        with contextlib.suppress(TimeoutError):
            self.block(wait)

    def wait_of(self, thread: int) -> Wait | None:
        """The call of skate in which ``thread`` waits."""
        for wait in self._parked:
            if wait.thread.ident == thread:
                return wait
        return None

    def crowded(self) -> bool:
        """True if something else may be able to run."""
        return bool(self._answered or self._queue)

    # Blocking ------------------------------------------------------------------------

    def block(self, wait: Wait, needed: Collection[Unit] = ()) -> None:
        """Let others run until ``wait`` is over or its time is up.

        Units in ``needed`` that may run anywhere run on this thread's own stack, so
        that a breakpoint in them stops with their caller in view. That is safe for
        what this thread needs anyway: it could not go on before they have ended.
        """
        worker = _here.worker
        if worker is not None and worker.home.closed:
            raise Stopped
        if self.lock._is_owned():  # type: ignore[attr-defined]
            # What it interrupted is half done, and waits for nobody.
            raise EngineError(
                "the handler of a signal made a call of skate that waits, in the midst "
                "of another call. Have it set a flag or an Event, and make the call "
                "outside of the handler."
            )
        outer = worker.wait if worker is not None else None
        unit = _here.interruptible
        with _elsewhere(), self.lock:
            stop_if_interrupted()
            grant = _here.grant
            if grant is not None:
                grant.lend()
            if worker is not None:
                worker.wait = wait
            if unit is not None:
                unit.wait = wait
            below, _here.wait = _here.wait, wait
            was_parked = self._set_aside(below)
            held = _here.holds
            try:
                self._park(wait)
                if not held:
                    self._take(wait)
                self._drive(wait, needed, depth_first=held)
            finally:  # Ctrl-C may end it at any point
                self._unpark(wait)
                if worker is not None:
                    worker.wait = outer
                if unit is not None:
                    unit.wait = None
                if grant is not None:
                    grant.reclaim()
                _here.wait = below
                if below is not None and was_parked:
                    self._park(below)
                if not held:
                    self._pass_on()
        error, wait.error = wait.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback leads here: no cycle for the GC

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """Give the baton away while this thread waits for the outside world."""
        with _elsewhere(), self._outside_world():
            yield

    @contextlib.contextmanager
    def _outside_world(self) -> Iterator[None]:
        with self.lock:
            self._outside += 1
            self._pass_on()
        try:
            yield
        finally:
            wait = Wait(lambda: "its turn")
            with self.lock:
                self._outside -= 1
                self._park(wait)
                self.give_turn(wait)
                self._sleep(wait)
                self._unpark(wait)

    def _park(self, wait: Wait) -> None:
        self._parked[wait] = None
        if wait.deadline is not None:
            entry = wait.deadline, next(self._sequence), wait
            heapq.heappush(self._deadlines, entry)
        if wait.done:
            wait.queued = True
            self._queue.append(wait)
        self._changed.notify_all()  # the deadline may be the nearest

    def _unpark(self, wait: Wait) -> None:
        self._parked.pop(wait, None)
        if wait.queued:
            for queue in (self._answered, self._queue):
                if wait in queue:
                    queue.remove(wait)
        if wait.handed:  # interrupted just when the baton came
            _here.holds = True

    def _set_aside(self, below: Wait | None) -> bool:
        """Nobody is to wake this thread for ``below``. True if somebody could have.

        It blocks for that, and a signal's handler makes another call on top of it.
        """
        if below is None:
            return False
        was_parked = below in self._parked
        self._unpark(below)
        below.queued = False
        return was_parked

    def _take(self, wait: Wait) -> None:
        if self._taken:
            self._sleep(wait)
        else:
            self._taken = _here.holds = True

    def _drive(
        self, wait: Wait, needed: Collection[Unit], *, depth_first: bool
    ) -> None:
        # The driver's tasks run in the order in which it made them. One that waits
        # for its own children runs these first: a tree needs a stack, not a thread
        # for each of its nodes.
        first = needed if depth_first else ()
        while not wait.turn:
            self._forget()
            item = self._next(first)
            if item is None:
                self._idle()
            elif item is not wait:
                if (
                    not isinstance(item, Wait)
                    and item.anywhere
                    and item in needed
                    and _here.depth < _DEEPEST
                ):
                    self._run_here(item, wait)
                else:
                    self._hand_to(item)
                    self._sleep(wait)

    def _run_here(self, unit: Unit, wait: Wait) -> None:
        # Nobody can wake this thread for ``wait`` while ``unit`` is on top of it.
        unit.begin()
        del self._parked[wait]
        _here.depth += 1
        self.lock.release()
        try:
            unit.run()
        finally:
            self.lock.acquire()
            _here.depth -= 1
        if wait.done:
            wait.turn = True
        else:
            self._parked[wait] = None

    def _sleep(self, wait: Wait) -> None:
        _here.holds = False
        self.lock.release()
        try:
            handed = wait.gate.acquire(timeout=wait.patience)
        finally:
            self.lock.acquire()
        if not handed:
            raise TimeoutError
        _here.holds = True
        wait.handed = False

    def _next(self, first: Collection[Unit] = ()) -> Unit | Wait | None:
        """Take what comes next from the queues; None if nothing can run now.

        A unit has not begun: there may be no thread for it.
        """
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            wait = heapq.heappop(self._deadlines)[2]
            if wait in self._parked and not wait.queued:
                wait.queued = True
                self._queue.append(wait)
        if self._answered:
            return self._leave(self._answered.popleft())
        if first:
            for item in self._queue:
                if item in first and not isinstance(item, Wait) and item.startable():
                    self._queue.remove(item)
                    return item
        for index, item in enumerate(self._queue):
            if isinstance(item, Wait):
                del self._queue[index]
                return self._leave(item)
            if item.startable():
                del self._queue[index]
                return item
        return None

    def _leave(self, wait: Wait) -> Wait:
        del self._parked[wait]
        wait.queued = False
        wait.turn = True
        return wait

    def _hand_to(self, item: Unit | Wait) -> None:
        """Raises RuntimeError if no thread can be started; then ``item`` is next."""
        if isinstance(item, Wait):
            item.handed = True
            item.gate.release()
        else:
            home = item.home
            try:
                worker = home.resting.pop() if home.resting else Worker(self, home)
            except BaseException:
                self._queue.appendleft(item)
                raise
            item.begin()
            home.busy.add(worker)
            self._num_busy += 1
            worker.start(item)

    def _pass_on(self) -> None:
        """Give the baton away if this thread has it, without waiting for it again."""
        if _here.holds:
            _here.holds = False
            self._taken = False
            self.kick()

    def finished(self, worker: Worker) -> None:
        """``worker`` has run its unit and has the baton."""
        with self.lock:
            home = worker.home
            home.busy.discard(worker)
            self._num_busy -= 1
            if self._unwinding is not None and not self._num_busy:
                self.answer(self._unwinding)
            if home.closed:
                worker.leave()
            else:
                home.resting.append(worker)
            self._forget()
            self._changed.notify_all()
            self._pass_on()

    # When nothing can run ------------------------------------------------------------

    def _idle(self) -> None:
        """Wait for a deadline, or for threads that the engine does not know."""
        while self._deadlines and self._deadlines[0][2] not in self._parked:
            heapq.heappop(self._deadlines)
        if self._deadlines:
            self._changed.wait(max(0.0, self._deadlines[0][0] - time.monotonic()))
        elif self._outside or self._others_may_act():
            self._changed.wait(1.0)  # a thread that ends does not say so
        else:
            self._break_deadlock()

    def _others_may_act(self) -> bool:
        waiting = {wait.thread for wait in self._parked}
        ours = {worker.thread for worker in self.workers}
        return any(
            thread not in waiting and thread not in ours
            for thread in threading.enumerate()
        )

    def _break_deadlock(self) -> None:
        waits = [wait for wait in self._parked if not wait.idle]
        stuck = [item for item in self._queue if not isinstance(item, Wait)]
        self.answer(waits[-1], DeadlockError(self._report(waits, stuck)))


class Worker:
    """A thread of the engine: runs one unit at a time, while it has the baton."""

    def __init__(self, baton: Baton, home: Home) -> None:
        self._baton = baton
        self.home = home
        self.wait: Wait | None = None  # the innermost skate call that blocks it
        self._unit: Unit | None = None
        self._gate = _closed_gate()
        self.thread = threading.Thread(
            target=self._run, name="skate-inline", daemon=True
        )
        try:
            self.thread.start()
        except BaseException:
            self._gate.release()  # Ctrl-C may come when it has started: it ends
            raise
        baton.workers.add(self)

    def start(self, unit: Unit) -> None:
        self._unit = unit
        self._gate.release()

    def leave(self) -> None:
        """End the thread, which is at rest or about to be."""
        self._baton.workers.discard(self)
        self._gate.release()

    def _run(self) -> None:
        _here.worker = self
        while True:
            self._gate.acquire()
            unit, self._unit = self._unit, None
            if unit is None:
                return
            _here.holds = True
            # What ended it has been told to those who wait for its results.
            with contextlib.suppress(Stopped, KeyboardInterrupt):
                unit.run()
            del unit
            self._baton.finished(self)
