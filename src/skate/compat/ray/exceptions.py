"""``ray.exceptions``: skate's exceptions under Ray's names, so that ``except`` works.

Those that only a cluster can raise are here too, and never raised.
"""

from skate.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    OwnerDiedError,
    PendingCallsLimitExceeded,
    RuntimeEnvSetupError,
    TaskCancelledError,
    TaskPlacementGroupRemoved,
    WorkerCrashedError,
)
from skate.exceptions import ActorError as RayActorError
from skate.exceptions import EngineDiedError as LocalRayletDiedError
from skate.exceptions import EngineError as RaySystemError
from skate.exceptions import SkateError as RayError
from skate.exceptions import TaskError as RayTaskError

UserCodeException = RayTaskError


class ActorHandleNotFoundError(RayError, ValueError):
    """Never raised."""


class ActorPlacementGroupRemoved(RayError):
    """Never raised: such calls fail with ActorDiedError."""


class ActorUnschedulableError(RayError):
    """Never raised: what cannot be had is refused at the call."""


class AsyncioActorExit(RayError):
    """Never raised: an async actor that leaves raises what any other does."""


class AuthenticationError(RayError):
    """Never raised."""


class CrossLanguageError(RayError):
    """Never raised."""


class NodeDiedError(RayError):
    """Never raised."""


class ObjectFetchTimedOutError(ObjectLostError):
    """Never raised."""


class ObjectFreedError(ObjectLostError):
    """Never raised."""


class ObjectReconstructionFailedError(ObjectLostError):
    """Never raised."""


class ObjectRefStreamEndOfStreamError(RayError):
    """Never raised: a stream ends by StopIteration."""


class OufOfBandObjectRefSerializationException(RayError):
    """Never raised: a ref pickled by hand raises TypeError."""


class PlasmaObjectNotAvailable(RayError):
    """Never raised."""


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """Never raised."""


class RpcError(RayError):
    """Never raised."""


class StreamingGeneratorReplayInconsistentError(RayError):
    """Never raised."""


class TaskUnschedulableError(RayError):
    """Never raised: what cannot be had is refused at the call."""


class UnserializableException(RayError):
    """Never raised: such an error comes as a TaskError with its text."""


__all__ = [
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorHandleNotFoundError",
    "ActorPlacementGroupRemoved",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AsyncioActorExit",
    "AuthenticationError",
    "CrossLanguageError",
    "GetTimeoutError",
    "LocalRayletDiedError",
    "NodeDiedError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectReconstructionFailedError",
    "ObjectRefStreamEndOfStreamError",
    "ObjectStoreFullError",
    "OufOfBandObjectRefSerializationException",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "PlasmaObjectNotAvailable",
    "RayActorError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "ReferenceCountingAssertionError",
    "RpcError",
    "RuntimeEnvSetupError",
    "StreamingGeneratorReplayInconsistentError",
    "TaskCancelledError",
    "TaskPlacementGroupRemoved",
    "TaskUnschedulableError",
    "UnserializableException",
    "UserCodeException",
    "WorkerCrashedError",
]
