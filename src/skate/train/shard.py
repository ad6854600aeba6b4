"""One shard of a parameter server: what it owns, and when it applies what. Pure.

The caller supplies memory and time, and makes those wait for whom nothing is ready.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from skate.kernels import reduce

from .layout import Part, Piece
from .optimizers import SGD, Adam, Optimizer
from .tree import Array

# Elements that are summed and applied at a time: they, their state and the result
# stay in the cache meanwhile.
CHUNK = 1 << 16

Allocate = Callable[[int, np.dtype[Any]], Array]


@dataclass(frozen=True)
class Rules:
    """How a server treats its workers; the same on every shard."""

    mode: str  # "sync", "async" or "stale"
    optimizer: Optimizer
    reduce: str  # "mean" or "sum"
    num_workers: int  # 0: as many as a run has ranks
    backup_workers: int = 0
    staleness: int = 0  # steps that a worker may be ahead, in mode "stale"
    deadline: float | None = None  # seconds, for a worker that others wait for


class Span(NamedTuple):
    """A run of elements of a block that a gradient covers."""

    block: int
    start: int
    stop: int


@dataclass
class Gradient:
    """What one worker says of one shard: dense runs, and rows of pieces."""

    spans: tuple[Span, ...]
    dense: Sequence[Array]  # (n,) for each span
    sparse: tuple[int, ...] = ()  # pieces
    rows: Sequence[tuple[Array, Array]] = ()  # for each: (R,) of the piece, (R, size)


class Answer(NamedTuple):
    """What became of a gradient."""

    accepted: bool  # False: it came too late, and was dropped
    staleness: int  # updates of the weights since those that it was computed with


@dataclass
class ShardStats:
    """What a shard has seen.

    Attributes:
        version: how often its weights have changed.
        gradients: those that were applied.
        late: those that came after enough others, and were dropped.
        staleness: updates between a gradient's weights and its use -> how many.
        lost: workers that were given up, since they missed the deadline.
        workers: those that take part.
    """

    version: int = 0
    gradients: int = 0
    late: int = 0
    staleness: Counter[int] = field(default_factory=Counter)
    lost: list[int] = field(default_factory=list)
    workers: list[int] = field(default_factory=list)


class Shard:
    """Sums gradients, applies the optimizer, and says who may read which version.

    Args:
        weights: the values of its blocks; they become its own.
        allocate: makes memory for the next version of a block.
    """

    def __init__(
        self, part: Part, weights: list[Array], rules: Rules, allocate: Allocate
    ) -> None:
        self._part = part
        self._rules = rules
        self._allocate = allocate
        self.weights = weights
        #: Readers may hold the weights: the next ones need memory of their own.
        self.published = True
        self._state = self._new_state()
        self._user_state: list[dict[str, Any]] = [{} for _ in weights]
        self._workers: set[int] = set()
        self._cohort = ""
        self._tokens: dict[int, int] = {}
        self._num_joined = 0
        self._expected = rules.num_workers
        self._clocks: dict[int, int] = {}
        self._pending: dict[int, Gradient] = {}
        self._since: float | None = None  # when the step's first gradient came
        self._seen: dict[int, float] = {}
        self._failure: BaseException | None = None
        self._stats = ShardStats()
        self._scratch: dict[np.dtype[Any], Array] = {}

    @property
    def version(self) -> int:
        return self._stats.version

    # who takes part ------------------------------------------------------------------

    def join(
        self, worker: int, now: float, cohort: str = "", num_workers: int = 0
    ) -> int:
        """Take ``worker`` in, anew if it was here before (and died, say).

        Args:
            cohort: of workers that start and end together; those of another one are
                gone.
            num_workers: of the cohort.

        Returns:
            A token for its gradients: those with an older one are its predecessor's.
        """
        if cohort != self._cohort:
            self._cohort, self._expected = cohort, num_workers
            self._workers.clear()
            self._tokens.clear()
            self._clocks.clear()
            self._pending.clear()
            self._since = None
        self._num_joined += 1
        self._tokens[worker] = self._num_joined
        self._take_in(worker, now)
        return self._num_joined

    def _take_in(self, worker: int, now: float) -> None:
        others = [clock for w, clock in self._clocks.items() if w != worker]
        self._clocks[worker] = min(others, default=0)
        self._pending.pop(worker, None)
        self._workers.add(worker)
        self._expected = max(self._expected, len(self._workers))
        self._seen[worker] = now

    def token_of(self, worker: int) -> int | None:
        """What ``join`` gave it last; None if it never joined."""
        return self._tokens.get(worker)

    def leave(self, worker: int) -> None:
        """Wait for ``worker`` no longer."""
        if worker in self._workers:
            self._workers.remove(worker)
            self._clocks.pop(worker)
            # What it has given already counts.
            self._expected = max(self._expected - 1, 0)
            self._apply_if_complete()

    def give_up_late(self, now: float, waiting: bool) -> None:
        """Drop the workers for whom others have waited longer than the deadline."""
        at = self.next_deadline(waiting)
        if at is None or now < at:
            return
        if self._rules.mode == "sync":
            missing = self._workers - set(self._pending)
        else:
            slowest = min(self._clocks.values())
            missing = {w for w, clock in self._clocks.items() if clock == slowest}
        self._stats.lost += sorted(missing)
        self._expected = len(self._workers)  # nor for those who never joined
        if self._rules.mode == "sync" and not missing:
            self._apply_if_complete()
        for worker in sorted(missing):
            self.leave(worker)

    def next_deadline(self, waiting: bool) -> float | None:
        """When ``give_up_late`` should be called, in the caller's time."""
        deadline = self._rules.deadline
        if deadline is None or self._failure is not None:
            return None
        if self._rules.mode == "sync":
            return None if self._since is None else self._since + deadline
        if self._rules.mode == "async" or not waiting or not self._clocks:
            return None
        slowest = min(self._clocks.values())
        seen = [self._seen[w] for w, clock in self._clocks.items() if clock == slowest]
        return max(seen) + deadline

    # gradients -----------------------------------------------------------------------

    def push(
        self, worker: int, token: int, version: int, gradient: Gradient, now: float
    ) -> Answer:
        """Take a gradient that ``worker`` computed with the weights of ``version``."""
        self.check()
        if self._tokens.get(worker) != token:  # of one that died and was replaced
            self._stats.late += 1
            return Answer(False, self.version - version)
        if worker not in self._workers:  # it was given up
            self._take_in(worker, now)
        self._seen[worker] = now
        behind = self.version - version
        if self._rules.mode == "sync":
            if behind > 0:
                self._stats.late += 1
                return Answer(False, behind)
            self._pending[worker] = gradient
            if self._since is None:
                self._since = now
            self._apply_if_complete()
            return Answer(True, behind)
        self._clocks[worker] += 1
        self._stats.staleness[behind] += 1
        self._apply([gradient])
        return Answer(True, behind)

    def _apply_if_complete(self) -> None:
        if not self._pending:
            return
        # A worker that has left is not waited for, but what it gave counts.
        came = len(self._workers.intersection(self._pending))
        if came < max(self._expected - self._rules.backup_workers, 1) and (
            self._workers or self._expected
        ):
            return
        # By rank: the same sum whoever came first.
        gradients = [self._pending[worker] for worker in sorted(self._pending)]
        self._pending.clear()
        self._since = None
        self._stats.staleness[0] += len(gradients)
        self._apply(gradients)

    def check(self) -> None:
        """Raise the error that ended this shard, if one did."""
        if self._failure is not None:
            raise self._failure

    # reading -------------------------------------------------------------------------

    def may_read(self, worker: int, at_least: int) -> bool:
        """Whether ``worker`` may go on with the weights as they are."""
        if self._failure is not None:
            return True  # to learn of it
        if self._rules.mode == "stale" and worker in self._clocks:
            slowest = min(self._clocks.values())
            if len(self._workers) < self._expected:
                slowest = min(slowest, 0)  # one has not come yet
            return self._clocks[worker] - slowest <= self._rules.staleness
        return self.version >= at_least

    def stats(self) -> ShardStats:
        self._stats.workers = sorted(self._workers)
        return self._stats

    # state ---------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that :meth:`restore` needs. The arrays are the shard's own: copy them."""
        return {
            "version": self.version,
            "gradients": self._stats.gradients,
            "weights": self.weights,
            "optimizer": self._state,
            "function": self._user_state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.weights = [np.array(block) for block in state["weights"]]
        self.published = True
        self._state = [[np.array(a) for a in arrays] for arrays in state["optimizer"]]
        self._user_state = state["function"]
        self._stats.version = state["version"]
        self._stats.gradients = state["gradients"]
        self._pending.clear()
        self._since = None
        self._clocks = dict.fromkeys(self._clocks, 0)

    # arithmetic ----------------------------------------------------------------------

    def _new_state(self) -> list[list[Array]]:
        if not isinstance(self._rules.optimizer, (SGD, Adam)):
            return [[] for _ in self.weights]
        names = self._rules.optimizer.state_names
        return [[np.zeros_like(block) for _ in names] for block in self.weights]

    def _apply(self, gradients: list[Gradient]) -> None:
        """One update of the weights by the mean, or the sum, of ``gradients``."""
        try:
            self._update(gradients)
        except BaseException as error:
            # Parts of the weights may be new already: nobody may go on with them.
            self._failure = error
            raise
        self._stats.version += 1
        self._stats.gradients += len(gradients)

    def _update(self, gradients: list[Gradient]) -> None:
        first = gradients[0]
        if any((g.spans, g.sparse) != (first.spans, first.sparse) for g in gradients):
            gradients = [self._densified(gradient) for gradient in gradients]
            first = gradients[0]
        optimizer = self._rules.optimizer
        if first.sparse and not isinstance(optimizer, (SGD, Adam)):
            gradients = [self._densified(gradient) for gradient in gradients]
            first = gradients[0]
        old = self.weights
        if self.published:
            new = [self._allocate(block.size, block.dtype) for block in old]
        else:
            new = old
        if first.sparse and self.published:
            for before, after in zip(old, new, strict=True):
                np.copyto(after, before)
        for i, span in enumerate(first.spans):
            self._dense(span, [g.dense[i] for g in gradients], old, new)
        for i, piece in enumerate(first.sparse):
            self._sparse(self._part.pieces[piece], [g.rows[i] for g in gradients], new)
        self.weights = new
        self.published = False

    def _dense(
        self, span: Span, parts: list[Array], old: list[Array], new: list[Array]
    ) -> None:
        optimizer, op = self._rules.optimizer, self._rules.reduce
        before, after = (w[span.block][span.start : span.stop] for w in (old, new))
        if optimizer is None:
            reduce(parts, op, out=after)
            return
        if not isinstance(optimizer, (SGD, Adam)):
            if after is not before:
                np.copyto(after, before)
            mean = reduce(parts, op)
            state = self._user_state[span.block]
            optimizer(after, mean, state, self.version)
            return
        states = [a[span.start : span.stop] for a in self._state[span.block]]
        scratch = self._scratch_for(before.dtype)
        for start in range(0, span.stop - span.start, CHUNK):
            at = slice(start, start + CHUNK)
            gradient = scratch[: before[at].size]
            reduce([part[at] for part in parts], op, out=gradient)
            optimizer.apply(
                before[at], gradient, [s[at] for s in states], after[at], self.version
            )

    def _sparse(
        self, piece: Piece, parts: list[tuple[Array, Array]], new: list[Array]
    ) -> None:
        """Only the rows named: neither the others nor their state change."""
        optimizer = self._rules.optimizer
        assert isinstance(optimizer, (SGD, Adam))
        indices = np.concatenate([part[0] for part in parts])
        rows, place = np.unique(indices, return_inverse=True)  # (R,), (sum of all,)
        if not rows.size:
            return
        gradient = np.zeros((rows.size, piece.row_size), new[piece.block].dtype)
        for values, where in zip(
            [part[1] for part in parts],
            np.split(place, np.cumsum([len(part[0]) for part in parts])[:-1]),
            strict=True,
        ):
            np.add.at(gradient, where, values)
        if self._rules.reduce == "mean":
            gradient /= len(parts)
        shape = (-1, piece.row_size)
        weights = new[piece.block][piece.offset : piece.end].reshape(shape)
        states = [
            a[piece.offset : piece.end].reshape(shape) for a in self._state[piece.block]
        ]
        chosen = [state[rows] for state in states]
        out = weights[rows]
        optimizer.apply(weights[rows], gradient, chosen, out, self.version)
        weights[rows] = out
        for state, values in zip(states, chosen, strict=True):
            state[rows] = values

    def _densified(self, gradient: Gradient) -> Gradient:
        """The same, over whole blocks, with zeros where it said nothing."""
        blocks = [np.zeros(size, dtype) for dtype, size in self._part.blocks]
        for span, values in zip(gradient.spans, gradient.dense, strict=True):
            blocks[span.block][span.start : span.stop] = values
        for i, (rows, values) in zip(gradient.sparse, gradient.rows, strict=True):
            piece = self._part.pieces[i]
            block = blocks[piece.block][piece.offset : piece.end]
            np.add.at(block.reshape(-1, piece.row_size), rows, values)
        spans = tuple(Span(i, 0, block.size) for i, block in enumerate(blocks))
        return Gradient(spans, blocks)

    def _scratch_for(self, dtype: np.dtype[Any]) -> Array:
        if dtype not in self._scratch:
            self._scratch[dtype] = np.empty(CHUNK, dtype)
        return self._scratch[dtype]
