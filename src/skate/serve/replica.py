"""The actor that holds one copy of each model and evaluates what callers send."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import skate
from skate.debug import profile

from ..exceptions import GetTimeoutError
from . import tree
from .batcher import Batcher, Request
from .errors import DrainingError, QueueFullError, StatesError
from .keeper import Newest, unknown_model
from .served import MakeModel, Outputs, Served, describe_kind, kind_of, split

_OVERTAKE = ("update", "stats", "ready")  # requests that wait; the rest keeps its turn
_POLL_S = 0.005  # while a model is being made on another thread

# Of a request, before its arrays: when it was sent, on the clock of time.time; the
# structure of its states; model_id; seconds until it is late, or None; min_version;
# client; reset.
Header = tuple[float, tree.Structure, str, float | None, int, Hashable, Any]


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What :func:`skate.serve.deploy` was told, after checking."""

    max_batch_size: int
    batch_wait_s: float
    max_queued: int  # states
    kind: Hashable = None  # of the states that models take; None: as the first ones
    any_kind: bool = False  # states need not be alike


@dataclass(slots=True)
class Counts:
    """Since the replica was made; see ``Deployment.stats``."""

    requests: int = 0
    states: int = 0
    batches: int = 0
    failed: int = 0
    refused: int = 0
    late: int = 0
    dropped: int = 0
    updates: int = 0
    busy_s: float = 0.0
    queue_s: float = 0.0
    in_place_bytes: int = 0
    # Batches by their size: up to 1, 2, 4, 8, ... states.
    batch_sizes: list[int] = field(default_factory=lambda: [0] * 24)


@dataclass(slots=True)
class _Loading:
    """A model that is being made while the old one still answers."""

    model_id: str
    version: int
    call: skate.ReceivedCall
    thread: threading.Thread
    made: list[Any] = field(default_factory=list)  # the model, or what was raised


class Replica:
    """Takes in its own calls (see ``skate.receiver``), all on one thread.

    So a batch is what has come while the model was busy, an update falls between two
    batches, and nothing passes through an event loop or another thread.
    """

    def __init__(self, keeper: Any, options: ServeOptions) -> None:
        self._options = options
        self._batcher = Batcher(options.max_batch_size, options.batch_wait_s)
        self._counts = Counts()
        self._draining: list[skate.ReceivedCall] = []
        self._drains = False
        self._is_idle = True  # nothing is queued, held or being made
        self._alone: deque[skate.ReceivedCall] = deque()  # batches, each by itself
        self._waits = options.batch_wait_s > 0
        self._held: list[Request] = []  # for a version that has not come yet
        self._loading: list[_Loading] = []
        self._models: dict[str, Served] = {}
        for model_id, newest in skate.get(keeper.models.remote()).items():
            self._models[model_id] = self._made_anew(newest)

    def _made_anew(self, newest: Newest) -> Served:
        served = self._served(newest.make(*newest.args), newest.version)
        if newest.weights is not None:
            served.set_weights(skate.get(newest.weights), newest.version)
        return served

    def _served(self, model: Any, version: int) -> Served:
        return Served(model, version, self._options.kind)

    # So that handles have these methods; what they do is below.

    def evaluate(self, header: Header, *leaves: Any) -> tuple[Outputs, int, int]:
        """Outputs, the version that made them, and how many states wait here."""
        raise NotImplementedError

    def update(self, model_id: str, version: int, weights: Any) -> None: ...

    def load(
        self, model_id: str, version: int, make: MakeModel, args: tuple[Any, ...]
    ) -> None: ...

    def unload(self, model_id: str) -> None: ...

    def forget(self, model_id: str, client: Hashable) -> None: ...

    def ready(self) -> None:
        """Ends when the models are there; a constructor's error is raised here."""

    def drain(self) -> None:
        """Refuse what comes from now on; ends when nothing is queued."""

    def stats(self) -> dict[str, Any]:
        raise NotImplementedError

    @skate.receiver
    def receive(self, calls: Sequence[skate.ReceivedCall]) -> float | None:
        """Take in what has come, evaluate one batch; when to be called again."""
        if self._is_idle:
            if self._are_batches(calls) or self._are_batches_after_others():
                self._evaluate_alone(self._alone.popleft())
                return 0.0 if self._alone else None
            calls = list(self._alone)
            self._alone.clear()
        for call in calls:
            self._take_one(call)
        if self._loading:
            self._finish_loading()
        due_at = self._batcher.due_at()
        now = time.monotonic()
        if due_at is not None and due_at <= now:
            self._evaluate(self._batcher.take(now), now)
            due_at = self._batcher.due_at()
            now = time.monotonic()
        if self._draining and not self._batcher.states:
            for call in self._draining:
                call.answer(None)
            self._draining.clear()
        waits = [due_at - now] if due_at is not None else []
        if self._loading:
            waits.append(_POLL_S)
        if self._held:
            waits.append(self._release_held(now))
        self._is_idle = not (waits or self._drains)
        return max(0.0, min(waits)) if waits else None

    def _are_batches(self, calls: Sequence[skate.ReceivedCall]) -> bool:
        """Add ``calls`` to those that wait; whether each may take the short way."""
        alone = self._alone
        # Those that wait are as they were, but time has passed for the next one.
        doubtful = [alone[0], *calls] if alone else calls
        alone.extend(calls)
        full = self._options.max_batch_size
        if not alone or len(alone) * full > max(full, self._options.max_queued):
            return False
        at_least = full if self._waits or len(alone) > 1 else 1
        for call in doubtful:
            args = call.args
            if call.method != "evaluate" or len(args) != 2:
                return False
            (sent, structure, model_id, timeout, min_version, client, _), states = args
            served = self._models.get(model_id)
            if (
                structure is not None
                or client is not None
                or served is None
                or served.is_recurrent
                or min_version > served.version
                or len(states) < at_least
                or served.takes not in (None, (None, states.dtype, states.shape[1:]))
                or (timeout is not None and time.time() - sent >= timeout)
                or not call.wanted
            ):
                return False
        return True

    def _are_batches_after_others(self) -> bool:
        """The same, once calls that may overtake requests have done so."""
        mixed = list(self._alone)
        others = [call for call in mixed if call.method in _OVERTAKE]
        requests = [call for call in mixed if call.method == "evaluate"]
        if not others or len(others) + len(requests) < len(mixed):
            return False
        self._alone = deque(requests)
        for call in others:
            self._take_one(call)
        self._alone.clear()
        return self._are_batches(requests)

    def _evaluate_alone(self, call: skate.ReceivedCall) -> None:
        """The short way, for a request that is a batch by itself.

        After a sleep the caches are cold, and each line of Python costs several times
        as much as in a loop: between two large batches there are 50 us.
        """
        header, states = call.args
        served = self._models[header[2]]
        size = len(states)
        counts = self._counts
        start = time.time()
        try:
            outputs = served.evaluate_states(states)
        except Exception as error:
            counts.failed += 1
            call.fail(error)
        else:
            if served.takes is None and not self._options.any_kind:
                served.takes = None, states.dtype, states.shape[1:]
            waiting = len(self._alone) * self._options.max_batch_size
            call.answer((outputs, served.version, waiting))
        counts.busy_s += time.time() - start
        counts.queue_s += start - header[0]
        counts.requests += 1
        counts.states += size
        counts.batches += 1
        counts.batch_sizes[(size - 1).bit_length()] += 1
        counts.in_place_bytes += states.nbytes

    def _take_one(self, call: skate.ReceivedCall) -> None:
        try:
            self._take[call.method](self, call)
        except Exception as error:
            call.fail(error)

    # Requests -------------------------------------------------------------------------

    def _take_evaluate(self, call: skate.ReceivedCall) -> None:
        header: Header
        header, *leaves = call.args
        sent, structure, model_id, timeout, min_version, client, reset = header
        counts = self._counts
        counts.requests += 1
        if self._drains:
            counts.refused += 1
            raise DrainingError("the deployment is being closed; it takes no requests.")
        served = self._model(model_id)
        size = len(leaves[0])
        counts.states += size
        waiting = self._batcher.states
        if waiting and waiting + size > self._options.max_queued:
            counts.refused += 1
            raise QueueFullError(
                f"{waiting} states are waiting and max_queued is "
                f"{self._options.max_queued}. Send fewer at a time, deploy more "
                "replicas, or raise max_queued."
            )
        kind = kind_of(structure, leaves)
        if served.takes is not None and kind != served.takes:
            raise StatesError(
                f"{served.name} takes states of {describe_kind(served.takes)}, and was "
                f"sent {describe_kind(kind)}. To serve states of several kinds, deploy "
                "with states='any'."
            )
        # What it has waited already, for a batch to end or in this process's inbox.
        now = time.monotonic()
        waited = max(0.0, time.time() - sent)
        request = Request(
            leaves,
            size,
            model_id,
            kind,
            call,
            now - waited,
            None if timeout is None else now - waited + timeout,
            min_version,
            client,
            reset,
        )
        served.check_client(request)
        if min_version > served.version:
            self._held.append(request)
        else:
            self._batcher.add(request)

    def _release_held(self, now: float) -> float:
        """Queue what need wait no longer; seconds until somebody will be late."""
        still: list[Request] = []
        nearest = 3600.0
        for request in self._held:
            served = self._models.get(request.model_id)
            if not self._is_wanted(request, now):
                continue
            if served is None or served.version >= request.min_version:
                self._batcher.add(request)
                nearest = 0.0
            else:
                still.append(request)
                if request.deadline is not None:
                    nearest = min(nearest, request.deadline - now)
        self._held = still
        return nearest

    def _is_wanted(self, request: Request, now: float) -> bool:
        if not request.answer.wanted:  # cancelled, or its caller is dead
            self._counts.dropped += 1
            request.answer.fail(GetTimeoutError("nobody waits for this request."))
            return False
        if request.deadline is not None and request.deadline < now:
            self._counts.late += 1
            request.answer.fail(
                GetTimeoutError("the request's timeout passed before its turn came.")
            )
            return False
        return True

    def _evaluate(self, batch: list[Request], now: float) -> None:
        counts = self._counts
        batch = [request for request in batch if self._is_wanted(request, now)]
        if not batch:
            return
        model_id = batch[0].model_id
        kind = batch[0].kind
        served = self._models.get(model_id)
        if served is None:
            self._fail(batch, unknown_model(model_id, list(self._models)))
            return
        if served.is_recurrent:
            batch = self._with_memory(served, batch)
            if not batch:
                return
        size = sum(request.size for request in batch)
        counts.batches += 1
        counts.batch_sizes[(size - 1).bit_length()] += 1
        counts.queue_s += sum(now - request.arrived for request in batch)
        if len(batch) == 1:
            counts.in_place_bytes += sum(leaf.nbytes for leaf in batch[0].leaves)
        start = time.perf_counter()
        try:
            with profile(f"{served.name}.evaluate"):
                outputs = served.evaluate(kind[0], batch)
            parts = [outputs]
            if len(batch) > 1:
                parts = split(outputs, [request.size for request in batch])
        except Exception as error:
            self._fail(batch, error)
            return
        finally:
            counts.busy_s += time.perf_counter() - start
        if served.takes is None and not self._options.any_kind:
            served.takes = kind
        waiting = self._batcher.states
        for request, part in zip(batch, parts, strict=True):
            request.answer.answer((part, served.version, waiting))

    def _with_memory(self, served: Served, batch: list[Request]) -> list[Request]:
        kept = []
        for request in batch:
            error = served.lacks_memory(request)
            if error is None:
                kept.append(request)
            else:
                self._fail([request], error)
        return kept

    def _fail(self, batch: list[Request], error: Exception) -> None:
        self._counts.failed += len(batch)
        for request in batch:
            request.answer.fail(error)

    def _model(self, model_id: str) -> Served:
        served = self._models.get(model_id)
        if served is None:
            raise unknown_model(model_id, list(self._models))
        return served

    # Everything else ------------------------------------------------------------------

    def _take_update(self, call: skate.ReceivedCall) -> None:
        model_id, version, weights = call.args
        served = self._model(model_id)
        if version > served.version:  # else it has them, by another way
            served.set_weights(weights, version)
            self._counts.updates += 1
        call.answer(None)

    def _take_load(self, call: skate.ReceivedCall) -> None:
        model_id, version, make, args = call.args
        before = self._models.get(model_id)
        if before is not None and before.version >= version:
            call.answer(None)
            return
        made: list[Any] = []

        def construct() -> None:
            try:
                made.append(make(*args))
            except Exception as error:
                made.append(error)

        # Constructing a model takes long; the old one goes on meanwhile.
        thread = threading.Thread(target=construct, name="skate-load", daemon=True)
        self._loading.append(_Loading(model_id, version, call, thread, made))
        thread.start()

    def _finish_loading(self) -> None:
        for loading in [one for one in self._loading if not one.thread.is_alive()]:
            self._loading.remove(loading)
            made = loading.made[0]
            if isinstance(made, Exception):
                loading.call.fail(made)
            else:
                self._models[loading.model_id] = self._served(made, loading.version)
                loading.call.answer(None)

    def _take_unload(self, call: skate.ReceivedCall) -> None:
        self._models.pop(call.args[0], None)
        call.answer(None)

    def _take_forget(self, call: skate.ReceivedCall) -> None:
        model_id, client = call.args
        self._model(model_id).forget(client)
        call.answer(None)

    def _take_ready(self, call: skate.ReceivedCall) -> None:
        call.answer(None)

    def _take_drain(self, call: skate.ReceivedCall) -> None:
        self._drains = True
        self._draining.append(call)

    def _take_stats(self, call: skate.ReceivedCall) -> None:
        counts = self._counts
        numbers = {name: getattr(counts, name) for name in Counts.__slots__}
        waiting = [request.size for request in self._held]
        waiting += [len(call.args[1]) for call in self._alone]
        numbers["queued"] = self._batcher.states + sum(waiting)
        numbers["versions"] = {name: m.version for name, m in self._models.items()}
        call.answer(numbers)

    _take: dict[str, Callable[[Replica, skate.ReceivedCall], None]] = {  # noqa: RUF012
        "evaluate": _take_evaluate,
        "update": _take_update,
        "load": _take_load,
        "unload": _take_unload,
        "forget": _take_forget,
        "ready": _take_ready,
        "drain": _take_drain,
        "stats": _take_stats,
    }
