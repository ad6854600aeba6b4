"""Every exception that a caller of skate may want to catch.

::

    SkateError
    |-- TaskError                  user code raised; also of the user's exception type
    |-- WorkerCrashedError         the process that ran a task ended
    |   `-- OutOfMemoryError       (MemoryError) the memory monitor ended it
    |-- TaskCancelledError         skate.cancel ended the task
    |   `-- TaskKilledError        (WorkerCrashedError) ... with its worker, by force
    |-- ActorError
    |   |-- ActorDiedError         the actor is gone, for good
    |   `-- ActorUnavailableError  the actor cannot be reached now
    |-- ActorAlreadyExistsError    (ValueError) the name is taken
    |-- ActorClassInheritanceException (TypeError) of what @skate.remote returned
    |-- PendingCallsLimitExceeded  more unanswered calls than max_pending_calls
    |-- GetTimeoutError            (TimeoutError)
    |-- ResourceError              (ValueError) more than the session has
    |-- RuntimeEnvSetupError       a task's runtime_env could not be set up
    |-- TaskPlacementGroupRemoved  the group that the task was to run in is gone
    |-- DeadlockError              (RuntimeError) nothing that could run is left
    |-- EngineError                (RuntimeError) no engine, or no longer one
    |   `-- EngineDiedError        the session ended under a call
    |-- ObjectStoreFullError       (MemoryError)
    |   `-- OutOfDiskError         nor can more of it be spilled to disk
    |-- ObjectLostError
    |   `-- OwnerDiedError         the process that owned the value ended
    |-- CheckpointError          (ValueError) cut, damaged, of another model or version
    `-- CollectiveError
        |-- RankDiedError          a rank's process ended; see ``.rank``
        |-- CollectiveTimeoutError (TimeoutError) see ``.missing_ranks``
        `-- ShapeMismatchError     (ValueError) ranks disagree about a call

A warning: PerformanceAdvice (UserWarning), about code that is slower than it need be.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "ActorAlreadyExistsError",
    "ActorClassInheritanceException",
    "ActorDiedError",
    "ActorError",
    "ActorUnavailableError",
    "CheckpointError",
    "CollectiveError",
    "CollectiveTimeoutError",
    "DeadlockError",
    "EngineDiedError",
    "EngineError",
    "GetTimeoutError",
    "ObjectLostError",
    "ObjectStoreFullError",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "PerformanceAdvice",
    "RankDiedError",
    "RemoteTraceback",
    "ResourceError",
    "RuntimeEnvSetupError",
    "ShapeMismatchError",
    "SkateError",
    "TaskCancelledError",
    "TaskError",
    "TaskKilledError",
    "TaskPlacementGroupRemoved",
    "WorkerCrashedError",
]


class PerformanceAdvice(UserWarning):
    """A warning about code that works and is slower than it need be, with its line."""


class SkateError(Exception):
    """The root of all errors that skate itself raises."""


class RemoteTraceback(Exception):
    """The traceback of a failed task, as text: the ``__cause__`` of its TaskError."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}\n"""'


class TaskError(SkateError):
    """User code raised an exception in a task, or in an actor's method.

    What ``get`` raises is also an instance of the user's exception type, with its
    ``args`` and attributes, so ``except ValueError`` works as in local code.

    Attributes:
        cause: the user's exception, or None if it could not be pickled.
        task_name: the task in which it was raised first.
        remote_traceback: the user's frames, through every task that it ended.
    """

    def __init__(
        self,
        message: str,
        *,
        cause: BaseException | None = None,
        task_name: str = "",
        remote_traceback: str = "",
    ) -> None:
        super().__init__(message)
        self._describe(cause, message, task_name, remote_traceback)

    def _describe(
        self,
        cause: BaseException | None,
        message: str,
        task_name: str,
        remote_traceback: str,
    ) -> None:
        self.cause = cause
        self.task_name = task_name
        self.remote_traceback = remote_traceback
        self._message = message
        if remote_traceback:
            self.__cause__ = RemoteTraceback(remote_traceback)

    @staticmethod
    def of(cause: BaseException, task_name: str, remote_traceback: str) -> TaskError:
        """The error to raise for ``cause``: of both types wherever that can be."""
        try:
            error = _dual_instance(cause)
        except Exception:
            # A user's class may refuse to be subclassed, or to be made without its
            # arguments. The plain error tells the same story.
            error = None
        if error is None:
            return TaskError(
                f"task {task_name} raised {type(cause).__qualname__}: {cause}",
                cause=cause,
                task_name=task_name,
                remote_traceback=remote_traceback,
            )
        error._describe(cause, str(cause), task_name, remote_traceback)
        return error

    def as_instanceof_cause(self) -> TaskError:
        """Itself, as in Ray: it is of the user's type already."""
        return self

    def __str__(self) -> str:
        return self._message

    def __reduce__(self) -> tuple[Callable[..., TaskError], tuple[Any, ...]]:
        # The class of a dual error exists in this process only.
        if isinstance(self, _Dual):
            return TaskError.of, (self.cause, self.task_name, self.remote_traceback)
        values = (self._message, self.cause, self.task_name, self.remote_traceback)
        return _restore_plain, values


class _Dual:
    """Marks the classes that ``_dual_class`` made."""


def _restore_plain(
    message: str, cause: BaseException | None, task_name: str, remote_traceback: str
) -> TaskError:
    return TaskError(
        message, cause=cause, task_name=task_name, remote_traceback=remote_traceback
    )


_dual_classes: dict[type[BaseException], type[TaskError]] = {}


def _dual_class(cause: type[BaseException]) -> type[TaskError]:
    made = _dual_classes.get(cause)
    if made is None:
        name = f"TaskError({cause.__qualname__})"
        made = type(name, (_Dual, TaskError, cause), {"__module__": __name__})
        _dual_classes[cause] = made
    return made


def _dual_instance(cause: BaseException) -> TaskError | None:
    """A TaskError that looks like ``cause`` to code that knows its type only."""
    # An exit request or a StopIteration would end the caller's process or loop
    # silently instead of telling it that a task failed.
    if not isinstance(cause, Exception) or isinstance(
        cause, (StopIteration, StopAsyncIteration)
    ):
        return None
    cls = _dual_class(type(cause))
    # The user's __init__ is not run: its arguments are unknown, its effects unwanted.
    # MemoryError's own __new__ is for itself only.
    make = BaseException.__new__ if isinstance(cause, MemoryError) else cls.__new__
    error: TaskError = make(cls, *cause.args)
    for base in type(cause).__mro__:
        for name, member in vars(base).items():
            # errno, filename, slots, args: whatever is not in the __dict__.
            if not name.startswith("__") and isinstance(
                member, (types.MemberDescriptorType, types.GetSetDescriptorType)
            ):
                try:
                    setattr(error, name, getattr(cause, name))
                except AttributeError:  # unset slot, or read-only
                    continue
    vars(error).update(vars(cause))
    return error


class WorkerCrashedError(SkateError):
    """The process that ran the task ended, more often than ``max_retries`` allows."""


# MemoryError comes first: its __new__, which is found first, is for its own kind only.
class OutOfMemoryError(MemoryError, WorkerCrashedError):
    """The memory monitor ended the task, more often than ``max_retries`` allows."""


class TaskCancelledError(SkateError):
    """The task was cancelled by ``skate.cancel``."""


class TaskKilledError(TaskCancelledError, WorkerCrashedError):
    """The task was cancelled with ``force=True``, which ended its worker."""


class ActorError(SkateError):
    """An actor could not run a call."""


class ActorDiedError(ActorError):
    """The actor is dead: killed, crashed, or its constructor raised."""


class ActorUnavailableError(ActorError):
    """The actor restarts: the call may or may not have run, later ones can run."""


class ActorAlreadyExistsError(SkateError, ValueError):
    """Another live actor of the namespace has this name."""


class ActorClassInheritanceException(SkateError, TypeError):
    """A class inherits from an actor class instead of from an ordinary one."""


class PendingCallsLimitExceeded(SkateError):
    """The actor has not answered ``max_pending_calls`` calls of this caller yet."""


class GetTimeoutError(SkateError, TimeoutError):
    """A value was not there within ``timeout``; the task goes on."""


class ResourceError(SkateError, ValueError):
    """A task or an actor asks for more than the session has at all."""


class RuntimeEnvSetupError(SkateError):
    """The runtime_env of a task, or an actor, could not be set up; it did not run."""


class TaskPlacementGroupRemoved(SkateError):
    """The task was to run in a placement group that was removed."""


class DeadlockError(SkateError, RuntimeError):
    """Everything waits, and nothing that could end a wait can run."""


class EngineError(SkateError, RuntimeError):
    """The engine could not start, has been shut down, or is not usable here."""


class EngineDiedError(EngineError):
    """The session has ended: shut down, or its supervisor is gone."""


class ObjectStoreFullError(MemoryError, SkateError):
    """The object store has no room, and nothing in it can be dropped or spilled."""


class OutOfDiskError(ObjectStoreFullError):
    """The object store is full, and the disk that it spills to, or its limit, too."""


class ObjectLostError(SkateError):
    """A value is gone although refs to it exist."""


class OwnerDiedError(ObjectLostError):
    """The process that owned the value ended before it was handed over."""


class CheckpointError(SkateError, ValueError):
    """A checkpoint cannot be used: it is cut, damaged, or of something else."""


class CollectiveError(SkateError):
    """A collective call of a group failed."""


class RankDiedError(CollectiveError):
    """A rank's process ended, or left the group. ``rank`` is None if unknown."""

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message, rank)
        self.rank = rank

    def __str__(self) -> str:
        return str(self.args[0])


class CollectiveTimeoutError(CollectiveError, TimeoutError):
    """Some ranks, ``missing_ranks``, did not arrive within ``timeout``."""

    def __init__(self, message: str, missing_ranks: Sequence[int] = ()) -> None:
        super().__init__(message, tuple(missing_ranks))
        self.missing_ranks = tuple(missing_ranks)

    def __str__(self) -> str:
        return str(self.args[0])


class ShapeMismatchError(CollectiveError, ValueError):
    """Shapes, dtypes or operations differ between ranks; no array was changed."""
