"""What callers of a deployment may catch, beside the errors of actors."""

from ..exceptions import SkateError


class ServeError(SkateError):
    """The root of what a deployment raises by itself."""


class QueueFullError(ServeError, RuntimeError):
    """A replica has ``max_queued`` states waiting; this request was not queued."""


class DrainingError(ServeError, RuntimeError):
    """The deployment takes no more requests: it is about to be closed."""


class StatesError(ServeError, ValueError):
    """The states are not what the model takes, or lack (or have) a client."""


class UnknownModelError(ServeError, LookupError):
    """No model of the deployment has this ``model_id``."""


class UnknownClientError(ServeError, LookupError):
    """The replica has no memory of this client.

    It has not begun with ``reset=True``, or its memory went with a replica that died.
    """
