"""What an engine does: the contract between the task API and whatever runs tasks.

The API layer (``_task``, ``_actor``, ``_runtime``) has checked every argument before
it calls an engine; an engine never checks user input again, it only reports what it
finds while running. Semantics that every engine keeps:

* Top-level ``ObjectRef`` arguments are replaced by their values before the function
  runs; refs inside containers stay refs. If such a value is an error, the task does
  not run and its returns hold that error.
* Arguments and results are copied by serialization: a task never sees the caller's
  mutable object. NumPy arrays come back read-only (``get(copy=True)``: writable).
* An error raised by user code is stored as the value of the refs, and ``get`` raises
  it as a :class:`skate.exceptions.TaskError` that is also of the user's type.
* Calls from one caller to one actor run in the order in which they were made.
* A task that blocks in ``get`` or ``wait`` gives its CPU back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .._options import ActorOptions, TaskOptions
from .._placement import GroupInfo
from .._ref import ActorRef, ObjectRef
from .._runtime_env import NO_ENV, RuntimeEnv
from .._stream import StreamSource

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What ``skate.init`` was told, after checking."""

    num_cpus: int
    num_gpus: float = 0.0
    gpus: tuple[int | str, ...] = ()  # the ids of as many; strings: the user's names
    resources: Mapping[str, float] = field(default_factory=dict)
    object_store_memory: int | None = None  # bytes; None: the engine's default
    namespace: str = ""
    preload: tuple[str, ...] = ()
    log_to_driver: bool = True
    address: str | None = None  # of a cluster; None: this machine
    runtime_env: RuntimeEnv = NO_ENV  # of all tasks and actors, not the driver
    given: frozenset[str] = frozenset()  # arguments that are not skate's own choice


def label_of(code: Any) -> str:
    """What statistics call a function or a class: its name, without where it is."""
    if isinstance(code, type):
        return code.__name__
    name = getattr(code, "__qualname__", None) or type(code).__qualname__
    return str(name).rpartition("<locals>.")[2]


@dataclass(slots=True, eq=False)
class TaskSpec:
    """One remote function as decorated (or as changed by ``.options``)."""

    function: Callable[..., Any]
    name: str  # for people: ``module.qualname``
    options: TaskOptions
    # What the current engine made of it (an exported function, say). The engine that
    # set it checks that it is its own; a spec outlives shutdown() and init().
    exported: Any = None


@dataclass(slots=True, eq=False)
class ActorSpec:
    """One actor class as decorated (or as changed by ``.options``)."""

    cls: type
    name: str  # the class, for people: ``module.qualname``
    options: ActorOptions
    interface: ActorInterface
    # Any method is ``async def``, or there is a receiver: calls overlap.
    is_async: bool
    receiver: str | None = (
        None  # the method that takes in all calls (``skate.receiver``)
    )
    exported: Any = None


class ActorInterface(NamedTuple):
    """What a handle must know of its actor's class. Small: it travels with handles."""

    class_name: str  # for people: ``module.qualname``
    # Public method names -> their default options (``@skate.method(num_returns=2)``).
    methods: Mapping[str, Mapping[str, Any]]
    # Options of the class that concern its callers, where they are not the default.
    options: Mapping[str, Any]


class MethodSpec(NamedTuple):
    """One method of an actor, with the options that a call of it has."""

    name: str
    num_returns: int = 1
    # The place of its concurrency group among the actor's; 0: it is in none.
    group: int = 0
    max_task_retries: int = 0  # after the actor's process died; -1: no limit
    # Errors of the method after which it is tried again as well: all, or these.
    retry_exceptions: bool | tuple[type[Exception], ...] = False
    max_pending_calls: int = -1  # of one caller; -1, 0: no limit
    out_of_order: bool = False  # need not wait for earlier calls that lack arguments
    window: int = 0  # items of a stream that may wait to be read; 0: any number


class NamedActor(NamedTuple):
    """What ``get_actor`` needs to build a handle."""

    actor: ActorRef
    interface: ActorInterface


class ActorState(str, Enum):
    """With Ray's names. An actor that restarts keeps its name and its handles."""

    PENDING_CREATION = "PENDING_CREATION"
    ALIVE = "ALIVE"
    RESTARTING = "RESTARTING"
    DEAD = "DEAD"


class ActorInfo(NamedTuple):
    """One actor, as ``list_actors`` tells it."""

    actor_id: int
    class_name: str
    state: ActorState
    name: str | None
    namespace: str
    num_restarts: int
    pid: int  # 0: it has no process now
    is_detached: bool
    death_cause: str  # "" while it lives


class TaskContext(NamedTuple):
    """Where the calling code runs; ids are 0 in the driver."""

    task_id: int
    actor_id: int
    worker_id: int
    task_name: str
    is_driver: bool
    num_restarts: int = 0  # of the actor


class ReceivedCall(Protocol):
    """A call that an actor's receiver was given, and that waits for its answer.

    Answer it once, in any order and at any time, on the actor's own thread.
    """

    method: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    @property
    def wanted(self) -> bool:
        """False once it was cancelled, or its caller's process has ended."""

    def answer(self, value: Any) -> None:
        """Give the caller ``value``; an error if it cannot be pickled."""

    def fail(self, error: BaseException) -> None:
        """Have ``error`` raised where the caller waits."""


class Watch(Protocol):
    """Tells which of many refs have a value, in O(1) for each that gets one."""

    def add(self, ref: ObjectRef[Any], tag: int) -> None:
        """Report ``tag`` once ``ref`` has a value or an error (at once if it has)."""

    def remove(self, ref: ObjectRef[Any], tag: int) -> None:
        """Report what was added so no more; it may have been reported already."""

    def next(self, timeout: float | None) -> list[int]:
        """Wait for at least one tag; all that are ready, each reported once.

        An empty list means that ``timeout`` seconds went by. Blocks like ``get``.
        """

    def close(self) -> None: ...


class FunctionSummary(NamedTuple):
    """What has become of the calls of one function, since the session began.

    What the engine does not know is nan: on Ray, the CPU time and the bytes.
    """

    finished: int
    failed: int  # with an error, or lost with their worker
    running: int
    queued: int  # submitted and not started
    total_s: float  # of those that finished, waiting included
    cpu_s: float
    p50_s: float  # of their durations; to about 10 %
    p99_s: float
    argument_bytes: float
    result_bytes: float


class Observer(Protocol):
    """Looks at a session without taking part in it."""

    def session(self) -> dict[str, Any]:
        """engine, seconds, cpus, cpus_used, workers, store_bytes, store_limit, ended"""

    def functions(self) -> dict[str, FunctionSummary]: ...

    def trace(self) -> dict[str, Any]:
        """The last events of every process, in Chrome's trace event format."""

    def stacks(self) -> str:
        """The Python stacks of all processes, for people."""

    def span(self, name: str, start_ns: int) -> None:
        """Record that the calling thread did ``name`` from then (``now``) to now."""

    def now(self) -> int:
        """The clock of spans, in ns."""


class Rounds(Protocol):
    """Rounds of work that rank 0 begins for all others at once; worker 0 is rank 1.

    What rank 0 wrote into shared memory before a round is seen by all that take part,
    and what they wrote, by rank 0 after it. Waits end early when a signal comes, and
    raise what its handler raises.
    """

    @property
    def num_odd(self) -> int:
        """Workers that had something to say in the latest round."""

    def begin(self) -> int:
        """Rank 0's: wake all others; the number of the round, from 1."""

    def wait(self, timeout: float) -> bool:
        """Rank 0's: whether all have ended the round within ``timeout`` seconds."""

    def has_ended(self, worker: int) -> bool: ...

    def next(self, seen: int, timeout: float) -> int:
        """A worker's: the round after ``seen``; ``seen`` if none began in time."""

    def end(self, worker: int, number: int, is_odd: bool = False) -> None:
        """A worker's: its part of that round is done."""


class Group(Protocol):
    """A rank's end of a collective group. Every rank makes the same calls in order.

    Arrays are C-contiguous and writable, also where they are only read. Reductions get
    ``kernels.NUMBERS`` or ``kernels.BFLOAT16``, calls that copy any dtype without
    Python objects. ``x`` and ``out`` are apart, or one is this rank's own part of the
    other. One call at a time: ``skate.collective`` sees to it.

    ``timeout`` is seconds; None waits for ever. Raises ``RankDiedError`` when another
    rank's process ends, ``CollectiveTimeoutError`` (with ``.missing_ranks``), and
    ``ShapeMismatchError`` on every rank when shapes, dtypes or operations differ.
    """

    rank: int
    world_size: int
    #: Whether calls can be made from a thread of the group's own.
    threads: bool
    #: Whether allreduce and broadcast take torch tensors on a GPU, too.
    gpus: bool

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        """A writable array in the group's memory: collectives on it copy nothing."""

    def peers(self, x: np.ndarray) -> list[np.ndarray] | None:
        """Every rank's ``x``, by rank, mapped here; None if they share no memory.

        A collective call: every rank passes an array that it made by ``empty``, of one
        dimension and the same dtype, and keeps it as long as others use it.
        """

    def rounds(self) -> Rounds | None:
        """Rounds of work from rank 0; None: ranks share no memory, or take turns.

        A collective call.
        """

    def allreduce(
        self, x: np.ndarray, op: str, timeout: float | None, label: str = ""
    ) -> None:
        """In place; ``op`` is sum, mean, max or min.

        Args:
            label: what ``x`` was made of, which must be the same on every rank.
        """

    def reduce(self, x: np.ndarray, op: str, root: int, timeout: float | None) -> None:
        """In place on ``root``; the others keep their contents."""

    def broadcast(self, x: np.ndarray, root: int, timeout: float | None) -> None:
        """In place."""

    def allgather(self, x: np.ndarray, out: np.ndarray, timeout: float | None) -> None:
        """``out`` is (world_size, *x.shape)."""

    def reducescatter(
        self, x: np.ndarray, out: np.ndarray, op: str, timeout: float | None
    ) -> None:
        """``x`` is (world_size, *out.shape); it keeps its contents."""

    def send(self, x: np.ndarray, to: int, timeout: float | None) -> None:
        """Returns once ``x`` may be used again, which waits for nobody as a rule."""

    def recv(self, x: np.ndarray, from_: int, timeout: float | None) -> None:
        """The next message of that rank; its shape and dtype are those of ``x``."""

    def barrier(self, timeout: float | None) -> None: ...

    def close(self) -> None:
        """Leave. May be called twice. Arrays of the group stay valid while held."""


class Engine(StreamSource, Protocol):
    """One running session of skate. Every call is safe from any thread."""

    name: str
    config: EngineConfig
    node_id: str  # the machine of this process, as in ``nodes``

    # tasks ------------------------------------------------------------------
    def submit(
        self, spec: TaskSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[ObjectRef[Any]]:
        """Start a task; ``options.num_returns`` refs, at once.

        With ``STREAMING``, one ref, of the generator's end: it has the value None, or
        the generator's error, and names the stream in the calls of ``StreamSource``.

        Raises TypeError, naming the function and the attribute at fault, if the
        function or an argument cannot be pickled; ``ResourceError`` (a ValueError)
        if no worker can ever have what ``options`` asks for.
        """

    # actors -----------------------------------------------------------------
    def create_actor(
        self, spec: ActorSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ActorRef:
        """Start an actor; returns at once. A failing constructor fails its calls.

        An actor whose process dies is made anew, ``max_restarts`` times, by its
        constructor with the same arguments. Calls that are made meanwhile wait.

        Raises ``ActorAlreadyExistsError`` if the name is taken in the namespace.
        """

    def call_actor(
        self,
        actor: ActorRef,
        method: MethodSpec,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> list[ObjectRef[Any]]:
        """Call a method. If the actor is dead, the refs hold ``ActorDiedError``.

        A call that was sent when the actor's process died is sent again,
        ``max_task_retries`` times; then its refs hold ``ActorUnavailableError`` if
        the actor restarts, else ``ActorDiedError``. One that raised what
        ``retry_exceptions`` says is tried again, too, after calls that were sent.

        Raises ``PendingCallsLimitExceeded``.
        """

    def kill_actor(self, actor: ActorRef, no_restart: bool) -> None:
        """End the actor's process now, as if it had died; or the actor for good."""

    def get_actor(self, name: str, namespace: str | None) -> NamedActor:
        """Raises ValueError, listing the known names, if there is none."""

    def current_actor(self) -> NamedActor | None:
        """The actor that runs the calling code."""

    def list_actors(self) -> list[ActorInfo]:
        """Every actor of the session, oldest first; of the dead, the last 1000."""

    # listing: rows with Ray's keys, see ``skate.util.state`` -------------------
    def list_tasks(self) -> Iterable[dict[str, Any]]: ...

    def list_objects(self) -> Iterable[dict[str, Any]]: ...

    def list_workers(self) -> Iterable[dict[str, Any]]: ...

    # cancelling -------------------------------------------------------------
    def cancel(self, ref: ObjectRef[Any], force: bool, recursive: bool) -> bool:
        """End the task that makes ``ref``, and with ``recursive`` those it started.

        False, and nothing is done, if ``force`` is set and it is a call of an actor.
        """

    def is_cancelled(self) -> bool:
        """Whether the task that calls has been cancelled."""

    # objects ----------------------------------------------------------------
    def put(self, value: Any) -> ObjectRef[Any]: ...

    def get(
        self, refs: Sequence[ObjectRef[Any]], timeout: float | None, copy: bool
    ) -> list[Any]:
        """The values, in order. Raises the first error found, ``GetTimeoutError``."""

    def wait(
        self, refs: list[ObjectRef[Any]], num_returns: int, timeout: float | None
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        """At most ``num_returns`` refs that have values, and the rest, in order.

        The one call that checks its own input, because it looks at each ref anyway and
        callers loop over it: TypeError for what is no ref, ValueError for one that is
        there twice (``_ref.check_refs`` and ``check_distinct`` say it in words).
        """

    def watch(self) -> Watch: ...

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray: ...

    def lend(self, array: np.ndarray) -> ObjectRef[Any]:
        """As ``put``, but an array of ``empty`` is not copied and stays writable."""

    # groups -----------------------------------------------------------------
    def join_group(
        self, name: str, rank: int, world_size: int, timeout: float | None
    ) -> Group:
        """Join the collective group ``name``; returns when every rank has joined."""

    # placement groups ---------------------------------------------------------
    def create_placement_group(
        self, bundles: Sequence[Mapping[str, float]], strategy: str, name: str
    ) -> str:
        """Set resources aside as soon as they are free; the group's id, at once."""

    def remove_placement_group(self, group: str) -> None:
        """Give its resources back.

        What runs in it is ended; what waits for it gets ``TaskPlacementGroupRemoved``,
        or an actor's ``ActorDiedError``.
        """

    def placement_groups(self, group: str | None = None) -> dict[str, GroupInfo]:
        """Every group of the session by its id; with ``group``, at most that one."""

    # the session ------------------------------------------------------------
    def context(self) -> TaskContext: ...

    def assigned_resources(self) -> dict[str, float]:
        """What the calling task, or its actor, holds; nothing in the driver.

        In a placement group, under the names that ``_placement`` gives.
        """

    def gpus(self) -> tuple[int | str, ...]:
        """The ids of the GPUs that the calling task, or its actor, holds."""

    def runtime_env(self) -> RuntimeEnv:
        """That of the calling task, or its actor; in the driver, the session's."""

    def nodes(self) -> list[dict[str, Any]]:
        """The machines of the session, with Ray's keys."""

    def cluster_resources(self) -> dict[str, float]: ...

    def available_resources(self) -> dict[str, float]: ...

    def statistics(self) -> dict[str, int]:
        """At least ``store_bytes`` (in use), ``objects`` (owned here), ``workers``."""

    def has_died(self) -> bool:
        """True once the session has ended by a fault: ``init`` may start another."""

    def observer(self) -> Observer: ...

    def failed(self, ref: ObjectRef[Any]) -> bool:
        """Whether ``ref``, which is ready, holds an error."""

    def why(self, ref: ObjectRef[Any]) -> str:
        """Why ``ref`` has no value yet, in words."""

    def shutdown(self) -> None:
        """End everything that was started. May be called twice."""


def this_machine(engine: Engine) -> dict[str, Any]:
    """What ``nodes`` says of it, for engines that run on one."""
    return {
        "NodeID": engine.node_id,
        "Alive": True,
        "alive": True,
        "NodeManagerAddress": "127.0.0.1",
        "NodeManagerHostname": os.uname().nodename,
        "NodeName": "127.0.0.1",
        "Resources": engine.cluster_resources(),
        "Labels": {},
    }
