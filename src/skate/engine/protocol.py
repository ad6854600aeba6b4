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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .._options import ActorOptions, TaskOptions
from .._ref import ActorRef, ObjectRef, RefCounter

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What ``skate.init`` was told, after checking."""

    num_cpus: int
    num_gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    object_store_memory: int | None = None  # bytes; None: the engine's default
    namespace: str = ""
    preload: tuple[str, ...] = ()
    log_to_driver: bool = True


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
    # Public method names -> their default options (``@skate.method(num_returns=2)``).
    methods: Mapping[str, Mapping[str, Any]]
    is_async: bool  # any method is ``async def``: the actor runs an asyncio loop
    exported: Any = None


@dataclass(frozen=True, slots=True)
class NamedActor:
    """What ``get_actor`` needs to build a handle."""

    actor: ActorRef
    class_name: str
    methods: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class TaskContext:
    """Where the calling code runs; ids are 0 in the driver."""

    task_id: int
    actor_id: int
    worker_id: int
    task_name: str
    is_driver: bool


class Watch(Protocol):
    """Tells which of many refs have a value, in O(1) for each that gets one."""

    def add(self, ref: ObjectRef[Any], tag: int) -> None:
        """Report ``tag`` once ``ref`` has a value or an error (at once if it has)."""

    def next(self, timeout: float | None) -> list[int]:
        """Wait for at least one tag; all that are ready, each reported once.

        An empty list means that ``timeout`` seconds went by. Blocks like ``get``.
        """

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class FunctionSummary:
    """What has become of the calls of one function, since the session began."""

    finished: int
    failed: int  # with an error, or lost with their worker
    running: int
    queued: int  # submitted and not started
    total_s: float  # of those that finished, waiting included
    cpu_s: float
    p50_s: float  # of their durations; to about 10 %
    p99_s: float
    argument_bytes: int
    result_bytes: int


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


class Group(Protocol):
    """A rank's end of a collective group. Every rank makes the same calls in order.

    ``timeout`` is seconds; None waits for ever. Raises ``RankDiedError`` when another
    rank's process ends, ``CollectiveTimeoutError`` (with ``.missing_ranks``), and
    ``ShapeMismatchError`` on every rank when shapes, dtypes or operations differ.
    """

    rank: int
    world_size: int

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        """A writable array in the group's memory: collectives on it copy nothing.

        Every rank must call it in the same order with the same arguments.
        """

    def allreduce(
        self, x: np.ndarray, op: str = "sum", timeout: float | None = None
    ) -> np.ndarray:
        """In place; ``op`` is sum, mean, max or min. Returns ``x``."""

    def broadcast(
        self, x: np.ndarray, root: int = 0, timeout: float | None = None
    ) -> np.ndarray:
        """In place; returns ``x``."""

    def barrier(self, timeout: float | None = None) -> None: ...

    def close(self) -> None:
        """Leave. May be called twice. Arrays of the group stay valid while held."""


class Engine(RefCounter, Protocol):
    """One running session of skate. Every call is safe from any thread."""

    name: str
    config: EngineConfig

    # tasks ------------------------------------------------------------------
    def submit(
        self, spec: TaskSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[ObjectRef[Any]]:
        """Start a task; ``options.num_returns`` refs, at once.

        Raises TypeError, naming the function and the attribute at fault, if the
        function or an argument cannot be pickled; ``ResourceError`` (a ValueError)
        if no worker can ever have what ``options`` asks for.
        """

    # actors -----------------------------------------------------------------
    def create_actor(
        self, spec: ActorSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ActorRef:
        """Start an actor; returns at once. A failing constructor fails its calls.

        Raises ``ActorAlreadyExistsError`` if the name is taken in the namespace.
        """

    def call_actor(
        self,
        actor: ActorRef,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        num_returns: int,
    ) -> list[ObjectRef[Any]]:
        """Call a method. If the actor is dead, the refs hold ``ActorDiedError``."""

    def kill_actor(self, actor: ActorRef) -> None:
        """End the actor's process now; calls that wait fail with ActorDiedError."""

    def get_actor(self, name: str, namespace: str | None) -> NamedActor:
        """Raises ValueError, listing the known names, if there is none."""

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

    # groups -----------------------------------------------------------------
    def join_group(
        self, name: str, rank: int, world_size: int, timeout: float | None
    ) -> Group:
        """Join the collective group ``name``; returns when every rank has joined."""

    # the session ------------------------------------------------------------
    def context(self) -> TaskContext: ...

    def assigned_resources(self) -> dict[str, float]:
        """What the calling task, or its actor, holds; nothing in the driver."""

    def cluster_resources(self) -> dict[str, float]: ...

    def available_resources(self) -> dict[str, float]: ...

    def statistics(self) -> dict[str, int]:
        """At least ``store_bytes`` (in use), ``objects`` (owned here), ``workers``."""

    def has_died(self) -> bool:
        """True once the session has ended by a fault: ``init`` may start another."""

    def observer(self) -> Observer: ...

    def why(self, ref: ObjectRef[Any]) -> str:
        """Why ``ref`` has no value yet, in words."""

    def shutdown(self) -> None:
        """End everything that was started. May be called twice."""
