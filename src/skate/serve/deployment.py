"""``deploy`` and what it returns: the caller's side of a served model."""

from __future__ import annotations

import asyncio
import threading
import time
import zlib
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

import skate

from ..exceptions import ActorDiedError, GetTimeoutError
from . import tree
from .answer import Answer
from .keeper import Keeper
from .replica import Replica, ServeOptions
from .served import MakeModel, kind_of

_SMALL = 1024  # bytes; such arrays travel in the message

_Default = object()


class Deployment:
    """A served model. Pass it to tasks and actors; all share the same replicas.

    Made by :func:`deploy`. States are an array, or a dictionary or tuple of arrays, of
    ``n`` rows each; n is from 1 to ``max_batch_size``. Arrays made by ``skate.empty``
    are lent, not copied: do not write to them until the call, or its future, has ended.
    """

    def __init__(
        self,
        keeper: Any,  # handles of actor classes made at run time
        replicas: list[Any],
        max_batch_size: int,
        timeout: float | None,
        check_finite: bool,
    ) -> None:
        self.max_batch_size = max_batch_size
        self._keeper = keeper
        self._replicas = replicas
        self._is_single = len(replicas) == 1  # then nobody asks which has least to do
        self._timeout = timeout
        self._check_finite = check_finite
        self._lock = threading.RLock()  # the handler of a signal may ask, too
        # Of each replica: states sent and not answered, states that it last said wait
        # there, and whether it is gone for good.
        self._sent = [0] * len(replicas)
        self._queued = [0] * len(replicas)
        self._dead: set[int] = set()
        self._turn = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Deployment, (
            self._keeper,
            self._replicas,
            self.max_batch_size,
            self._timeout,
            self._check_finite,
        )

    # Asking ---------------------------------------------------------------------------

    def evaluate(
        self,
        states: tree.Tree,
        *,
        return_version: bool = False,
        timeout: Any = _Default,
        min_version: int = 0,
        model_id: str = "",
        client: Hashable = None,
        reset: Any = False,
    ) -> Any:
        """The model's outputs for a batch of states; waits for them.

        Small requests of all callers are batched; a full batch skips that. Two requests
        in flight (``submit``, ``map``) keep a replica busy while answers travel.

        Args:
            states: ``(n, ...)``, or a tree of such arrays.
            return_version: return ``(outputs, version of the weights)``.
            timeout: seconds; None waits for ever. The deployment's own, unless given.
            min_version: wait until the weights are at least that version.
            model_id: which model, if the deployment has several.
            client: of a recurrent model, whose states these are.
            reset: begin its memory anew: True, or a mask of ``n`` rows.

        Raises:
            ValueError: no states, too many, or not what the model takes.
            QueueFullError: ``max_queued`` states are waiting already.
            GetTimeoutError: no answer in time; the request is withdrawn.
            UnknownModelError, UnknownClientError: see there.
            ActorUnavailableError: the replica died with the request; another takes its
                place. Not with ``deploy(..., pure=True)``, which asks again.
            ActorDiedError: the deployment was closed, or cannot be restarted.
            Exception: what the model raised for this batch, as a TaskError too.
        """
        timeout = self._timeout if timeout is _Default else timeout
        ref, place, size, _ = self._send(
            states, timeout, min_version, model_id, client, reset
        )
        queued = None
        try:
            outputs, version, queued = skate.get(ref, timeout=timeout)
        except GetTimeoutError:
            skate.cancel(ref)
            raise
        except ActorDiedError:
            self._dead.add(place)
            raise
        finally:
            self._settled(place, size, queued)
        return (outputs, version) if return_version else outputs

    def submit(
        self,
        states: tree.Tree,
        *,
        timeout: Any = _Default,
        min_version: int = 0,
        model_id: str = "",
        client: Hashable = None,
        reset: Any = False,
    ) -> Answer:
        """Like :meth:`evaluate`, but returns a future at once.

        ``timeout`` is how long the request may wait for its evaluation. ``cancel()`` of
        the future withdraws it.
        """
        timeout = self._timeout if timeout is _Default else timeout
        ref, place, size, keep = self._send(
            states, timeout, min_version, model_id, client, reset
        )
        return Answer(ref, keep, partial(self._settled, place, size))

    def map(
        self, batches: Iterable[tree.Tree], *, in_flight: int = 2, **options: Any
    ) -> Iterator[Any]:
        """The outputs for each of ``batches``, in order; ``in_flight`` at a time.

        While one batch is evaluated, the next one is made and copied. ``options`` are
        those of :meth:`submit`. A batch of ``skate.empty`` may be filled again once its
        outputs have come.
        """
        if in_flight < 1:
            raise ValueError(f"in_flight={in_flight!r}; expected at least 1.")
        waiting: deque[Answer] = deque()
        for states in batches:
            waiting.append(self.submit(states, **options))
            if len(waiting) >= in_flight:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    async def aevaluate(
        self,
        states: tree.Tree,
        *,
        return_version: bool = False,
        timeout: Any = _Default,
        min_version: int = 0,
        model_id: str = "",
        client: Hashable = None,
        reset: Any = False,
    ) -> Any:
        """:meth:`evaluate` for a coroutine."""
        timeout = self._timeout if timeout is _Default else timeout
        ref, place, size, _ = self._send(
            states, timeout, min_version, model_id, client, reset
        )
        queued = None
        try:
            outputs, version, queued = await asyncio.wait_for(_value(ref), timeout)
        except asyncio.TimeoutError as error:
            skate.cancel(ref)
            raise GetTimeoutError(f"no answer within {timeout} s.") from error
        except asyncio.CancelledError:
            skate.cancel(ref)
            raise
        except ActorDiedError:
            self._dead.add(place)
            raise
        finally:
            self._settled(place, size, queued)
        return (outputs, version) if return_version else outputs

    def forget(self, client: Hashable, *, model_id: str = "") -> None:
        """Drop the memory of a recurrent model's client."""
        replica = self._replicas[self._place_of(client)]
        skate.get(replica.forget.remote(model_id, client))

    # Changing the models --------------------------------------------------------------

    def update(self, weights: Any, *, model_id: str = "") -> int:
        """Give every replica new weights, each between two batches.

        They are put into the store once; replicas map them. Returns their version: one
        more than the last. No request is dropped; those in flight are answered by the
        old weights or the new, never by a mixture.

        Raises:
            TypeError: the model has no ``set_weights``.
            UnknownModelError: there is no such model.
            Exception: what ``set_weights`` raised; the model must then have kept its
                old weights, and the version stays.
        """
        is_ref = isinstance(weights, skate.ObjectRef)
        shared = [weights if is_ref else skate.put(weights)]
        ref = self._keeper.update.remote(self._replicas, model_id, shared)
        return int(skate.get(ref))

    def load(self, model: MakeModel, *args: Any, model_id: str = "") -> int:
        """Put ``model(*args)`` in the place of a model, or beside the others.

        Each replica makes it while the old one still answers, then changes over between
        two batches. Returns the version, which goes on from the old model's.

        Raises:
            TypeError: ``model`` has no ``evaluate``.
            Exception: what the constructor raised; the old model stays.
        """
        _check_model(model)
        return int(
            skate.get(self._keeper.load.remote(self._replicas, model_id, model, args))
        )

    def unload(self, model_id: str) -> None:
        """Drop a model. Its requests fail with UnknownModelError from now on."""
        skate.get(self._keeper.unload.remote(self._replicas, model_id))

    def versions(self) -> dict[str, int]:
        """The version of each model, by ``model_id``."""
        versions: dict[str, int] = skate.get(self._keeper.versions.remote())
        return versions

    # Looking, and ending --------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Since deployment, or since a replica was restarted; sums over the replicas.

        ``requests``, ``states``, ``batches``; ``failed``, ``refused``, ``late`` and
        ``dropped`` requests; ``updates``; ``queued`` states; ``busy_s`` in the model
        and ``queue_s`` of waiting for it; ``in_place_bytes`` that were evaluated where
        the client had put them; ``batch_sizes``: batches of up to 1, 2, 4, ... states;
        ``version``, and ``versions`` by model, that all replicas have; ``version_lag``
        behind the newest; ``replicas`` that answer.
        """
        refs = [replica.stats.remote() for replica in self._replicas]
        parts: list[dict[str, Any]] = []
        for place, ref in enumerate(refs):
            try:
                parts.append(skate.get(ref))
            except ActorDiedError:
                self._dead.add(place)
                if len(self._dead) == len(refs):
                    raise
        total: dict[str, Any] = {"replicas": len(parts)}
        for name in parts[0]:
            values = [part[name] for part in parts]
            if name == "batch_sizes":
                total[name] = {
                    1 << power: sum(counts)
                    for power, counts in enumerate(zip(*values, strict=True))
                    if any(counts)
                }
            elif name != "versions":
                total[name] = sum(values)
        newest = self.versions()
        here = {
            model_id: min(part["versions"].get(model_id, 0) for part in parts)
            for model_id in newest
        }
        lag = max((newest[model_id] - here[model_id] for model_id in here), default=0)
        total["versions"] = here
        total["version"] = here.get("", min(here.values(), default=0))
        return total | {"version_lag": lag}

    def drain(self, timeout: float | None = None) -> None:
        """Take no more requests, and wait until those that were taken are answered.

        Raises:
            GetTimeoutError: they are not within ``timeout`` seconds.
        """
        skate.get([replica.drain.remote() for replica in self._replicas], timeout)

    def close(self) -> None:
        """End the replicas, for every holder of this deployment.

        What is not answered fails with ActorDiedError: see :meth:`drain`.
        """
        for replica in self._replicas:
            skate.kill(replica)
        skate.kill(self._keeper)

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Sending --------------------------------------------------------------------------

    def _send(
        self,
        states: tree.Tree,
        timeout: float | None,
        min_version: int,
        model_id: str,
        client: Hashable,
        reset: Any,
    ) -> tuple[skate.ObjectRef[Any], int, int, Any]:
        # The client's caches are cold, as the replica's are (Replica._evaluate_alone):
        # what most requests do not need is passed by.
        if (
            type(states) is np.ndarray
            and states.ndim
            and 0 < (size := len(states)) <= self.max_batch_size
            and not states.dtype.hasobject
            and not self._check_finite
        ):
            leaves, structure = [states], None
        else:
            given, structure = tree.flatten(states)
            leaves = [np.asarray(leaf) for leaf in given]
            size = self._check(leaves, structure)
        place = 0
        if not self._is_single:
            place = self._pick(size) if client is None else self._place_of(client)
        sent = [_passed(leaf) for leaf in leaves]
        header = time.time(), structure, model_id, timeout, min_version, client, reset
        ref = self._replicas[place].evaluate.remote(header, *sent)
        if not self._is_single:
            with self._lock:
                self._sent[place] += size
        return ref, place, size, leaves

    def _check(self, leaves: Sequence[np.ndarray], structure: tree.Structure) -> int:
        if not leaves:
            raise ValueError("states has no arrays; expected one, or a tree of them.")
        size = len(leaves[0]) if leaves[0].ndim else 0
        for index, leaf in enumerate(leaves):
            if leaf.ndim == 0 or not 0 < len(leaf) <= self.max_batch_size:
                name = tree.leaf_name(structure, index)
                raise ValueError(
                    f"states{name} has shape {leaf.shape}; expected (n, ...) with n "
                    f"from 1 to max_batch_size={self.max_batch_size}. For one state, "
                    "pass state[None]; for more, deploy with a larger max_batch_size."
                )
            if len(leaf) != size:
                name = tree.leaf_name(structure, index)
                raise ValueError(
                    f"states{name} has {len(leaf)} rows and the first array {size}: "
                    "all arrays of a request need the same first axis."
                )
            if leaf.dtype.hasobject:
                raise ValueError(
                    f"states of dtype {leaf.dtype} hold Python objects; convert them "
                    "to numbers first."
                )
            if self._check_finite and not np.isfinite(leaf).all():
                row = int(np.argwhere(~np.isfinite(leaf))[0][0])
                raise ValueError(
                    f"states{tree.leaf_name(structure, index)} holds NaN or infinity "
                    f"in row {row}, which deploy(check_finite=True) refuses."
                )
        return size

    def _pick(self, size: int) -> int:
        """The replica with the least to do, as far as is known here."""
        n = len(self._replicas)
        with self._lock:
            self._turn = (self._turn + 1) % n
            order = [(self._turn + i) % n for i in range(n)]
            alive = [place for place in order if place not in self._dead] or order
            return min(alive, key=lambda p: self._sent[p] + self._queued[p])

    def _place_of(self, client: Hashable) -> int:
        # The same in every process, which hash() of a string is not.
        return zlib.crc32(repr(client).encode()) % len(self._replicas)

    def _settled(self, place: int, size: int, queued: int | None) -> None:
        if self._is_single:
            return
        with self._lock:
            self._sent[place] -= size
            if queued is not None:
                self._queued[place] = queued


async def _value(ref: skate.ObjectRef[Any]) -> Any:
    return await ref


def _passed(leaf: np.ndarray) -> Any:
    """``leaf`` as it is sent: small ones by value, others without sealing them."""
    return np.array(leaf) if leaf.nbytes <= _SMALL else skate.lend(leaf)


def deploy(
    model: MakeModel,
    *args: Any,
    num_replicas: int = 1,
    max_batch_size: int = 64,
    batch_wait_s: float = 0.0,
    max_queued: int = 1024,
    timeout: float | None = None,
    model_ids: Sequence[str] = (),
    states: Any = None,
    check_finite: bool = False,
    pure: bool = False,
    actor_options: Mapping[str, Any] | None = None,
) -> Deployment:
    """Serve ``model(*args)`` to every task, actor and thread of the program.

    Args:
        model: a class with ``evaluate(states)``; optionally ``set_weights(weights)``,
            which must keep the old weights if it raises, and ``initial_memory(n)``:
            see :class:`Model`.
        num_replicas: copies of the model, each in an actor of its own. One that dies is
            made again, with the newest weights.
        max_batch_size: states that the model gets at most in one call.
        batch_wait_s: seconds a small request may wait for others to join it. With 0,
            a batch is what arrived while the model was busy.
        max_queued: states that may wait at one replica; more are refused.
        timeout: seconds :meth:`Deployment.evaluate` waits; None waits for ever.
        model_ids: serve a model for each, made alike; every call then names one.
        states: an example of what the models take, of any number of rows; what differs
            in dtype or shape is refused. None: as the first ones that were evaluated;
            ``"any"``: no check, and states that differ do not share a batch.
        check_finite: refuse states with NaN or infinity.
        pure: ``evaluate`` may be done again: requests that a dying replica had are
            sent again, up to three times, instead of failing.
        actor_options: of the replicas, such as ``{"num_gpus": 1}``.

    Raises:
        TypeError: ``model`` has no ``evaluate``.
        ValueError: a number is out of range.
        Exception: what the model's constructor raised, as a TaskError too.
    """
    _check_model(model)
    for name, number in [
        ("num_replicas", num_replicas),
        ("max_batch_size", max_batch_size),
        ("max_queued", max_queued),
    ]:
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name}={number!r}; expected an integer of at least 1.")
    if not batch_wait_s >= 0:
        raise ValueError(f"batch_wait_s={batch_wait_s!r}; expected seconds, 0 or more.")
    if isinstance(model_ids, str) or len(set(model_ids)) != len(model_ids):
        raise ValueError(f"model_ids={model_ids!r}; expected a list of distinct names.")
    any_kind = isinstance(states, str)
    if any_kind and states != "any":
        raise ValueError(f"states={states!r}; expected an example, None or 'any'.")
    kind = None
    if states is not None and not any_kind:
        given, structure = tree.flatten(states)
        kind = kind_of(structure, [np.asarray(leaf) for leaf in given])
    options = ServeOptions(max_batch_size, batch_wait_s, max_queued, kind, any_kind)
    models = dict.fromkeys(model_ids or [""], (model, args))
    keeper = skate.remote(Keeper).options(num_cpus=0).remote(models)
    actor_class = skate.remote(Replica).options(
        max_restarts=-1,
        **({"max_task_retries": 3} if pure else {}),
        **(actor_options or {}),
    )
    replicas = [actor_class.remote(keeper, options) for _ in range(num_replicas)]
    skate.get([replica.ready.remote() for replica in replicas])
    return Deployment(keeper, replicas, max_batch_size, timeout, check_finite)


def _check_model(model: Any) -> None:
    if not callable(getattr(model, "evaluate", None)):
        raise TypeError(
            f"cannot serve {model!r}: it needs a method evaluate(states) that takes "
            "an array of shape (n, ...) and returns arrays of length n."
        )
