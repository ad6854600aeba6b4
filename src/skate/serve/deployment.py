"""``deploy`` and what it returns: the caller's side of a served model."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt

import skate

from .replica import Model, Outputs, Replica, ServeOptions


class Answer(Future[Any]):
    """The outputs of one request, in time. ``version`` is set once it is done."""

    version: int | None = None


class Deployment:
    """A served model. Pass it to tasks and actors; all share the same replicas.

    Made by :func:`deploy`. A caller's requests go to the replicas in turn.
    """

    def __init__(
        self, replicas: list[Any], max_batch_size: int, timeout: float | None
    ) -> None:
        self._replicas = replicas  # Any: handles of an actor class made at run time
        self._max_batch_size = max_batch_size
        self._timeout = timeout
        self._turn = 0

    def evaluate(self, states: npt.ArrayLike, *, return_version: bool = False) -> Any:
        """The model's outputs for a batch of states; waits for them.

        Args:
            states: ``(n, ...)``, n from 1 to ``max_batch_size``. Small requests of
                all callers are batched; one of ``max_batch_size`` goes straight in.
            return_version: return ``(outputs, version of the weights)``.

        Raises:
            ValueError: no states, or too many.
            QueueFullError: ``max_queued`` states are waiting already.
            GetTimeoutError: no answer within the deployment's ``timeout``.
            ActorDiedError: the replica ended, or the deployment was closed.
            Exception: what the model raised for this batch, as a TaskError too.
        """
        answer = skate.get(self._send(states), timeout=self._timeout)
        return answer if return_version else answer[0]

    def submit(self, states: npt.ArrayLike) -> Answer:
        """Like :meth:`evaluate`, but returns a future at once.

        Two requests in flight keep a replica busy while answers travel.
        """
        answer = Answer()
        answer.set_running_or_notify_cancel()

        def finish(sent: Future[tuple[Outputs, int]]) -> None:
            error = sent.exception()
            if error is not None:
                answer.set_exception(error)
            else:
                outputs, answer.version = sent.result()
                answer.set_result(outputs)

        self._send(states).future().add_done_callback(finish)
        return answer

    async def aevaluate(
        self, states: npt.ArrayLike, *, return_version: bool = False
    ) -> Any:
        """:meth:`evaluate` for a coroutine."""
        answer = await self._send(states)
        return answer if return_version else answer[0]

    def update(self, weights: Any) -> int:
        """Give every replica new weights, each between two batches.

        Returns their version: one more than the last. No request is dropped; those
        in flight are answered by the old weights or the new, never by a mixture.

        Raises:
            TypeError: the model has no ``set_weights``.
            Exception: what ``set_weights`` raised; the model must then have kept its
                old weights, and the version stays.
        """
        first, *rest = self._replicas
        if not rest:
            return int(skate.get(first.update.remote(weights)))
        # The first replica numbers the updates; the others skip what is older than
        # what they have, so concurrent updates leave all with the same weights.
        shared = skate.put(weights)
        version = int(skate.get(first.update.remote(shared)))
        skate.get([replica.update.remote(shared, version) for replica in rest])
        return version

    def stats(self) -> dict[str, Any]:
        """Since deployment: ``requests``, ``states``, ``batches``, ``busy_s``, ...

        Sums over the replicas; ``busy_s`` is seconds inside the model, ``version``
        the one that all replicas have.
        """
        parts = skate.get([replica.stats.remote() for replica in self._replicas])
        total = {name: sum(part[name] for part in parts) for name in parts[0]}
        return total | {"version": min(part["version"] for part in parts)}

    def close(self) -> None:
        """End the replicas, for every holder of this deployment."""
        for replica in self._replicas:
            skate.kill(replica)

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _send(self, states: npt.ArrayLike) -> Any:
        states = np.asarray(states)
        if states.ndim == 0 or not 0 < len(states) <= self._max_batch_size:
            raise ValueError(
                f"states has shape {states.shape}; expected (n, ...) with n from 1 to "
                f"max_batch_size={self._max_batch_size}. For one state, pass "
                "state[None]; for more, deploy with a larger max_batch_size."
            )
        self._turn = (self._turn + 1) % len(self._replicas)
        return self._replicas[self._turn].evaluate.remote(states)


def deploy(
    model: Callable[..., Model],
    *args: Any,
    num_replicas: int = 1,
    max_batch_size: int = 64,
    batch_wait_s: float = 0.0,
    max_queued: int = 1024,
    timeout: float | None = None,
) -> Deployment:
    """Serve ``model(*args)`` to every task, actor and thread of the program.

    Args:
        model: a class with ``evaluate(states)``; optionally ``set_weights(weights)``,
            which must keep the old weights if it raises.
        num_replicas: copies of the model, each in an actor of its own.
        max_batch_size: states that the model gets at most in one call.
        batch_wait_s: seconds a small request may wait for others to join it. With 0,
            a batch is what arrived while the model was busy.
        max_queued: states that may wait at one replica; more are refused.
        timeout: seconds :meth:`Deployment.evaluate` waits; None waits for ever.

    Raises:
        TypeError: ``model`` has no ``evaluate``.
        ValueError: a number is out of range.
        Exception: what the model's constructor raised, as a TaskError too.
    """
    if not callable(getattr(model, "evaluate", None)):
        raise TypeError(
            f"cannot serve {model!r}: it needs a method evaluate(states) that takes "
            "an array of shape (n, ...) and returns arrays of length n."
        )
    for name, number in [
        ("num_replicas", num_replicas),
        ("max_batch_size", max_batch_size),
        ("max_queued", max_queued),
    ]:
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name}={number!r}; expected an integer of at least 1.")
    if not batch_wait_s >= 0:
        raise ValueError(f"batch_wait_s={batch_wait_s!r}; expected seconds, 0 or more.")
    options = ServeOptions(max_batch_size, batch_wait_s, max_queued)
    actor_class = skate.remote(Replica)
    replicas = [actor_class.remote(model, args, options) for _ in range(num_replicas)]
    skate.get([replica.ready.remote() for replica in replicas])
    return Deployment(replicas, max_batch_size, timeout)
