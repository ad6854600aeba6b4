"""The session: start and end it, and the calls on refs. Checks, then forwards.

The only module state of skate is here: the engine of this process.
"""

from __future__ import annotations

import atexit
import operator
import os
import threading
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ._exact import exact
from ._options import check_quantity, check_resources
from ._ref import ObjectRef, check_refs
from ._runtime_env import RuntimeEnv, check_runtime_env
from ._stream import ObjectRefGenerator
from .engine import open_engine
from .engine.futures import ends_futures
from .engine.gpus import find_gpus
from .engine.limits import usable_cpus
from .engine.protocol import Engine, EngineConfig
from .exceptions import EngineDiedError, EngineError, SkateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")
W = TypeVar("W", bound="ObjectRef[Any] | ObjectRefGenerator[Any]")

_engine: Engine | None = None
_is_worker = False

# One thread at a time starts or ends the session. A signal handler, a finalizer or a
# callback may want to, while its own thread does: so the lock may be taken again, and
# what goes on is said.
_lock = threading.RLock()
_change = ""  # "starts" or "ends", by whoever has the lock
_LOOK_AGAIN_S = 0.02


def current() -> Engine:
    """The engine of this process; the first call in a driver starts one."""
    engine = _engine
    if engine is None:
        init(ignore_reinit_error=True)  # another thread may be quicker
        engine = _engine
        assert engine is not None
    return engine


def engine_of(what: object) -> Engine:
    """The engine for a call on ``what``, a ref or a handle: that starts none.

    It may come from a finalizer, after the session's end or while the next one starts.
    """
    engine = _engine
    if engine is None:
        raise EngineError(
            f"{what!r} belongs to a session that has ended, and its value with it."
        )
    return engine


def set_worker_engine(engine: Engine) -> None:
    """In a worker process: the engine that its tasks use."""
    global _engine, _is_worker
    _engine = engine
    _is_worker = True


def worker_engine() -> Engine | None:
    """In a worker process, what ``set_worker_engine`` was given."""
    return _engine if _is_worker else None


class Session:
    """What ``init`` returns: says what runs, and ends it when used with ``with``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.engine = engine.name
        self.num_cpus = engine.config.num_cpus

    def disconnect(self) -> None:
        """The same as ``skate.shutdown()``, if this session is still the current."""
        if _engine is self._engine:
            shutdown()

    def __enter__(self) -> Session:  # Self needs Python 3.11
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.disconnect()

    def __repr__(self) -> str:
        return f"Session(engine={self.engine!r}, num_cpus={self.num_cpus})"


def init(
    engine: str | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    object_store_memory: int | None = None,
    namespace: str | None = None,
    address: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    preload: tuple[str, ...] | list[str] = (),
    log_to_driver: bool = True,
    ignore_reinit_error: bool = False,
) -> Session:
    """Start skate in this process. Optional: the first call that needs it does.

    Args:
        engine: ``"embedded"`` (worker processes on this machine), ``"inline"`` (this
            process only, for debuggers) or ``"ray"`` (a Ray cluster); None takes the
            environment variable ``SKATE_ENGINE``, else ``"embedded"``.
        num_cpus: how many tasks of one CPU may run at once; None takes the CPUs
            that this process may use (affinity, and the quota of its cgroup).
        num_gpus: GPUs to hand out; None takes those that ``CUDA_VISIBLE_DEVICES``
            names, or without it, those of the machine.
        resources: amounts of custom resources, by name.
        object_store_memory: bytes; None lets the engine choose.
        namespace: where the names of this driver's actors live.
        address: of a Ray cluster, ``"host:port"`` of its head, or ``"auto"`` for one
            that runs on this machine; None takes ``RAY_ADDRESS``, and without it, as
            with ``"local"``, Ray is started here. Other engines run on this machine.
        runtime_env: what tasks and actors find in their processes: a dict with
            ``env_vars``, ``working_dir`` and ``py_modules``, as in Ray.
        preload: modules that worker processes import before they start, after those
            that the environment variable ``SKATE_PRELOAD`` names (with commas).
        log_to_driver: show here what tasks print.
        ignore_reinit_error: do nothing if skate runs already.

    Returns:
        A session, which ends when used as ``with skate.init(): ...``.

    A session whose supervisor was killed is ended and replaced.

    Raises:
        RuntimeError: skate runs already in this process.
        TypeError, ValueError: an argument is wrong; the message says which.
    """
    global _engine
    if _engine is not None and _engine.has_died():
        shutdown()
    with _turn("starts") as is_ours:
        if not is_ours:
            raise RuntimeError(
                f"skate.init was called while skate {_change}, by a signal handler, a "
                "finalizer or the callback of a future: in the thread that does it, or "
                "that it waits for. Call it later, or in another thread."
            )
        if _engine is not None:
            if ignore_reinit_error:
                return Session(_engine)
            raise RuntimeError(
                f"skate runs already in this process (engine {_engine.name!r}). Call "
                "skate.shutdown() first, or pass ignore_reinit_error=True."
            )
        name = exact(engine) or os.environ.get("SKATE_ENGINE") or "embedded"
        num_gpus_found, gpus = _find_gpus(exact(num_gpus))
        config = EngineConfig(
            num_cpus=_check_cpus(exact(num_cpus)),
            num_gpus=num_gpus_found,
            gpus=gpus,
            runtime_env=_check_runtime_env(exact(runtime_env), name),
            resources=check_resources("resources", exact(resources or {})),
            object_store_memory=_check_memory(exact(object_store_memory)),
            namespace=_check_namespace(exact(namespace)),
            preload=(*_preload_of_environment(), *_check_preload(exact(preload))),
            log_to_driver=bool(log_to_driver),
            address=_check_address(exact(address), name),
            given=frozenset(
                argument
                for argument, value in [
                    ("num_cpus", num_cpus),
                    ("num_gpus", num_gpus),
                    ("resources", resources),
                    ("object_store_memory", object_store_memory),
                ]
                if value is not None
            ),
        )
        _engine = open_engine(name, config)
        # Registered anew each time: what was registered later runs earlier, and user
        # handlers that were registered after init may still call skate.
        atexit.unregister(_shutdown_at_exit)
        atexit.register(_shutdown_at_exit, os.getpid())
        return Session(_engine)


@contextmanager
def _turn(change: str) -> Iterator[bool]:
    """To start or end the session. False: whoever does that waits for this thread."""
    global _change
    # The end of a session waits for the thread that calls the callbacks of futures.
    patience_s = _LOOK_AGAIN_S if ends_futures() else -1
    while not _lock.acquire(timeout=patience_s):
        if _change == "ends":
            yield False
            return
    try:
        if _change:
            yield False
            return
        _change = change
        try:
            yield True
        finally:
            _change = ""
    finally:
        _lock.release()


def _forget_other_threads() -> None:
    """In a forked child: whoever was starting or ending the session is not there."""
    global _lock, _change
    if _lock.acquire(blocking=False):  # nobody was, or the thread that forked
        _lock.release()
    else:
        _lock, _change = threading.RLock(), ""


os.register_at_fork(after_in_child=_forget_other_threads)


def _shutdown_at_exit(pid: int) -> None:
    if pid != os.getpid():  # a forked child inherits the handler, not the engine
        return
    hook = threading.excepthook

    def report(args: threading.ExceptHookArgs) -> None:
        # A daemon thread that still waits ends with the program, as others do.
        is_daemon = args.thread is not None and args.thread.daemon
        if not (is_daemon and issubclass(args.exc_type, EngineDiedError)):
            hook(args)

    threading.excepthook = report
    shutdown()


def shutdown() -> None:
    """End everything that skate started. Does nothing if skate does not run.

    Nor does it in the middle of ``init`` or another ``shutdown``: in a signal handler
    or a finalizer of the same thread, or in the callback of a future.

    Raises:
        RuntimeError: called in a task or an actor; only the driver may end skate.
    """
    global _engine
    if _is_worker or (_engine is not None and not _engine.context().is_driver):
        raise RuntimeError("only the driver may call skate.shutdown(), not a task.")
    with _turn("ends") as is_ours:
        if not is_ours or _engine is None:
            return
        try:
            # Until it has ended, its own threads still find it: one that unwinds and
            # cleans up must not wait for this lock, nor start another engine.
            _engine.shutdown()
        finally:
            _engine = None


def is_initialized() -> bool:
    """True between ``init`` (or the first call that needed it) and ``shutdown``."""
    return _engine is not None


def _check_cpus(num_cpus: int | None) -> int:
    if num_cpus is None:
        return usable_cpus()
    if isinstance(num_cpus, bool) or not isinstance(num_cpus, int):
        raise TypeError(f"num_cpus must be an integer, not {num_cpus!r}.")
    if num_cpus < 1:
        raise ValueError(f"num_cpus must be 1 or more, not {num_cpus!r}.")
    return num_cpus


def _find_gpus(num_gpus: float | None) -> tuple[float, tuple[int | str, ...]]:
    if num_gpus is not None:
        num_gpus = check_quantity("num_gpus", num_gpus)
    return find_gpus(num_gpus)


def _check_runtime_env(value: Mapping[str, Any] | None, engine: str) -> RuntimeEnv:
    env = check_runtime_env("runtime_env", value or {})
    if engine == "ray":
        return env
    env = env.here(engine)
    env.check_paths()
    return env


def _check_namespace(namespace: str | None) -> str:
    if namespace is None:
        return ""
    if not isinstance(namespace, str):
        raise TypeError(
            f"namespace must be a string, not {namespace!r} of type "
            f"{type(namespace).__name__}."
        )
    return namespace


def _check_memory(num_bytes: int | None) -> int | None:
    if num_bytes is None:
        return None
    if isinstance(num_bytes, bool) or not isinstance(num_bytes, int):
        raise TypeError(f"object_store_memory is bytes, an integer, not {num_bytes!r}.")
    if num_bytes < 1 << 20:
        raise ValueError(
            f"object_store_memory={num_bytes!r} is less than 1 MiB; give it in bytes."
        )
    return num_bytes


def _check_address(address: str | None, engine: str) -> str | None:
    if engine == "ray":
        return address or os.environ.get("RAY_ADDRESS") or None
    if address not in (None, "local"):
        raise ValueError(
            f"address={address!r}: only 'local' exists on engine={engine!r}, which "
            "runs on one machine. A Ray cluster needs engine='ray'."
        )
    return None


def _check_preload(preload: Any) -> tuple[str, ...]:
    if isinstance(preload, str) or not all(isinstance(name, str) for name in preload):
        raise TypeError(
            f"preload must be a list of module names, such as ['torch'], not "
            f"{preload!r}."
        )
    return tuple(preload)


def _preload_of_environment() -> tuple[str, ...]:
    """What ``SKATE_PRELOAD`` names: it concerns sessions that start by themselves."""
    return tuple(filter(None, os.environ.get("SKATE_PRELOAD", "").split(",")))


@overload
def get(
    refs: ObjectRef[T], timeout: float | None = None, *, copy: bool = False
) -> T: ...
@overload
def get(
    refs: list[ObjectRef[T]], timeout: float | None = None, *, copy: bool = False
) -> list[T]: ...


def get(refs: Any, timeout: float | None = None, *, copy: bool = False) -> Any:
    """The value of a ref, or the values of a list of refs; waits until they exist.

    NumPy arrays and torch CPU tensors come back as views of the object store, which
    are read-only, without a copy.

    Args:
        refs: an ObjectRef, or a list of them.
        timeout: seconds; None waits for ever, 0 does not wait.
        copy: give arrays that are the caller's own, and writable.

    Raises:
        TaskError: a task failed; also an instance of the user's exception type.
        GetTimeoutError: a value was not there in time. The task goes on.
        KeyboardInterrupt: Ctrl-C, in the driver; what the call waited for is cancelled.
        ActorDiedError, WorkerCrashedError: a process ended before it had the value.
        TypeError: ``refs`` is neither a ref nor a list of refs.
    """
    if timeout is not None:
        timeout = checked_timeout(timeout)
    if type(refs) is ObjectRef:
        engine = engine_of(refs)
        try:
            return engine.get((refs,), timeout, copy)[0]
        except KeyboardInterrupt:
            cancel_interrupted(engine, [refs])
            raise
    if isinstance(refs, ObjectRefGenerator):
        return (
            refs  # as in Ray, whose "dynamic" generators are got before they are read
        )
    if not isinstance(refs, list):
        raise TypeError(
            f"skate.get takes an ObjectRef or a list of them, not {refs!r} of type "
            f"{type(refs).__name__}."
        )
    check_refs("skate.get", refs)
    if not refs:
        return []
    engine = engine_of(refs[0])
    try:
        return engine.get(refs, timeout, copy)
    except KeyboardInterrupt:
        cancel_interrupted(engine, refs)
        raise


def cancel_interrupted(
    engine: Engine, refs: Iterable[ObjectRef[Any] | ObjectRefGenerator[Any]]
) -> None:
    """After Ctrl-C in the driver: nobody waits for these any more; actors live on.

    A task that is interrupted in its own wait is being cancelled, by somebody who has
    said what becomes of those that it waits for. Nor is there anything to cancel where
    the signal's handler has ended the session, or another thread ends it.
    """
    if engine is _engine and engine.context().is_driver:
        with suppress(SkateError):
            for ref in refs:
                engine.cancel(_ref_of(ref), False, True)


def _ref_of(what: ObjectRef[Any] | ObjectRefGenerator[Any]) -> ObjectRef[Any]:
    return what._completed if isinstance(what, ObjectRefGenerator) else what


def put(value: T) -> ObjectRef[T]:
    """Store ``value``; the ref gives it back to any task, actor or ``get``.

    Worth it for a value that goes to several tasks: it is copied once. An array from
    ``skate.empty`` is not copied at all, and becomes read-only.

    Raises:
        TypeError: ``value`` is a ref already, or cannot be pickled.
        ObjectStoreFullError: there is no room.
    """
    if isinstance(value, ObjectRef):
        raise TypeError(
            f"skate.put({value!r}): it is a ref already. Pass it on as it is, or put "
            "it into a list if you want a ref to a ref."
        )
    return current().put(value)


def wait(
    refs: list[W],
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[W], list[W]]:
    """Wait until ``num_returns`` of ``refs`` have a value or an error.

    To handle many results as they come, ``as_completed`` costs less: a loop of
    ``wait`` copies the list each time.

    Args:
        refs: a list of distinct refs, or streams (ObjectRefGenerator): these are ready
            when their next item is, or their end.
        num_returns: how many to wait for; at most that many are returned as ready.
        timeout: seconds; None waits for ever, 0 only looks.
        fetch_local: as in Ray; on one machine every value is local.

    Returns:
        The ready refs and the others, each in the order of ``refs``.

    Raises:
        TypeError: ``refs`` is not a list of refs.
        ValueError: a ref appears twice, or ``num_returns`` is out of range.
    """
    if not isinstance(refs, list):
        raise TypeError(
            f"skate.wait takes a list of ObjectRefs, not {refs!r} of type "
            f"{type(refs).__name__}."
        )
    if timeout is not None:
        timeout = checked_timeout(timeout)
    if not refs:
        return [], []
    if isinstance(num_returns, bool) or not isinstance(num_returns, int):
        raise TypeError(f"num_returns must be an integer, not {num_returns!r}.")
    if not 1 <= num_returns <= len(refs):
        raise ValueError(
            f"num_returns must be from 1 to the number of refs, {len(refs)}, not "
            f"{num_returns!r}."
        )
    if _engine is None:  # an engine looks at each of them itself
        check_refs("skate.wait", [_ref_of(ref) for ref in refs])
    engine = engine_of(refs[0])
    peeks: list[ObjectRef[Any]] = refs  # type: ignore[assignment]
    try:
        try:
            return engine.wait(peeks, num_returns, timeout)  # type: ignore[return-value]
        except TypeError:  # it looks at each of them: here, that would cost too much
            if not any(isinstance(ref, ObjectRefGenerator) for ref in refs):
                raise
        peeks = [
            peek(engine, ref) if isinstance(ref, ObjectRefGenerator) else ref
            for ref in refs
        ]
        ready = {id(ref) for ref in engine.wait(peeks, num_returns, timeout)[0]}
    except KeyboardInterrupt:
        cancel_interrupted(engine, refs)
        raise
    pairs = list(zip(refs, peeks, strict=True))
    return (
        [ref for ref, peek in pairs if id(peek) in ready],
        [ref for ref, peek in pairs if id(peek) not in ready],
    )


def peek(engine: Engine, stream: ObjectRefGenerator[Any]) -> ObjectRef[Any]:
    """A ref that is ready once the stream's next item, or its end, is there."""
    completed = stream._completed
    if completed._counter is not engine:
        engine.wait([completed], 1, 0)  # refuses the refs of an ended session
    taken = stream._taken
    if taken:
        return taken[0]  # its value is there
    return engine.peek_item(completed._id)


def cancel(
    ref: ObjectRef[Any] | ObjectRefGenerator[Any],
    force: bool = False,
    recursive: bool = True,
) -> None:
    """Cancel the task, or the call of an actor, that makes ``ref``.

    One that has not started never does. A running task gets a KeyboardInterrupt; a
    running call of an async actor an asyncio.CancelledError; in a running call of any
    other actor ``get_runtime_context().is_canceled()`` becomes true. ``get`` then
    raises TaskCancelledError, unless the task has caught it and returned. Cancelled
    tasks are not tried again. One that has ended is left as it is.

    Args:
        ref: of a task, or a stream.
        force: end the worker that runs the task; not for calls of actors.
        recursive: cancel what the task has started, too.

    Raises:
        TypeError: not a ref.
        ValueError: ``force`` with a call of an actor; use ``skate.kill``.
    """
    ref = _ref_of(ref)
    if type(ref) is not ObjectRef:
        raise TypeError(
            f"skate.cancel takes an ObjectRef or an ObjectRefGenerator, not {ref!r} of "
            f"type {type(ref).__name__}. For an actor, use skate.kill."
        )
    if not engine_of(ref).cancel(ref, bool(force), bool(recursive)):
        raise ValueError(
            "force=True is not for calls of actors: it would end the actor. Use "
            "skate.kill(actor) for that, or force=False."
        )


_LONGEST_S = 1e9  # 30 years: what is longer, an integer of any size, is no less


def checked_timeout(timeout: Any) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout is seconds, a number or None, not {timeout!r}.")
    if not timeout >= 0:
        raise ValueError(f"timeout must be zero or more seconds, not {timeout!r}.")
    return min(timeout, _LONGEST_S)


def empty(shape: int | tuple[int, ...], dtype: npt.DTypeLike = float) -> np.ndarray:
    """A writable array, born in the object store, with arbitrary contents.

    ``put``, returning it from a task, or passing it to a remote call hands it over
    without a copy: from then on it is read-only, and a write raises ValueError. As one
    of several results, as an item of a stream, or inside another value it is copied. On
    the inline engine it is an ordinary array.

    Args:
        shape: of the array.
        dtype: any NumPy dtype that holds no Python objects.
    """
    import numpy as np

    checked = np.dtype(dtype)
    if checked.hasobject:
        raise TypeError(
            f"skate.empty makes arrays of plain data; {checked!r} holds Python objects."
        )
    sizes = shape if isinstance(shape, Iterable) else (shape,)
    try:
        exact_sizes = tuple(operator.index(size) for size in sizes)
    except TypeError:
        exact_sizes = (-1,)
    if any(size < 0 for size in exact_sizes):
        raise ValueError(f"shape must be integers of zero or more, not {shape!r}.")
    return current().empty(exact_sizes, checked)


def lend(array: np.ndarray) -> ObjectRef[Any]:
    """A ref to ``array``, which stays the caller's, and writable.

    For arrays of ``skate.empty`` that are filled, passed to a call, and filled again
    once the call has ended: nothing is copied or allocated. Until then the caller must
    not write: others would see it. Who receives it, and wants to keep it, must copy it.
    Any other array is put, which copies it; so is every array on the engines ``inline``
    and ``ray``.

    Raises:
        TypeError: not an array.
        ObjectStoreFullError: there is no room for the copy.
    """
    import numpy as np

    if not isinstance(array, np.ndarray):
        raise TypeError(
            f"skate.lend takes a NumPy array, such as skate.empty makes, not "
            f"{type(array).__name__}. For other values there is skate.put."
        )
    return current().lend(array)


def cluster_resources() -> dict[str, float]:
    """What the session has in all: ``{"CPU": 8.0, ...}``."""
    return current().cluster_resources()


def available_resources() -> dict[str, float]:
    """What of ``cluster_resources`` no running task and no live actor holds now."""
    return current().available_resources()


def nodes() -> list[dict[str, Any]]:
    """The machines of the session, as Ray describes them."""
    return current().nodes()


def statistics() -> dict[str, int]:
    """What the engine holds: at least ``store_bytes``, ``objects``, ``workers``."""
    return current().statistics()
