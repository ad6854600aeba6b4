"""A worker's end of a parameter server: pull weights, push gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

import skate
from skate.exceptions import ActorDiedError, ShapeMismatchError

from .layout import Layout
from .optimizers import Rows
from .shard import Answer, Rules, Span
from .shard_host import Form, HostedShard, hosted
from .tree import Array, Tree, as_array, as_tensor, flatten, map_leaves


class Shards:
    """How to call each shard: an actor, a rank that hosts it, or this very process."""

    def __init__(
        self,
        *,
        actors: Sequence[Any] = (),
        hosts: Sequence[Any] = (),
        key: str = "",
        number: int = 0,
        rank: int = 0,
    ) -> None:
        self._actors = actors
        self._hosts = hosts
        self._key = key
        self._rank = rank
        self.number = len(actors) or number

    def own(self, shard: int) -> HostedShard | None:
        """The shard itself, if it lives in this process."""
        if self._hosts and shard % len(self._hosts) == self._rank:
            return hosted((self._key, shard))
        return None

    def call(self, shard: int, method: str, *args: Any) -> skate.ObjectRef[Any]:
        """Call a shard that lives elsewhere."""
        if self._actors:
            ref: skate.ObjectRef[Any] = getattr(self._actors[shard], method).remote(
                *args
            )
            return ref
        rank = self._hosts[shard % len(self._hosts)]
        answer: skate.ObjectRef[Any] = rank.serve.remote(
            (self._key, shard), method, *args
        )
        return answer

    def ask(
        self, method: str, args: Sequence[tuple[Any, ...]], timeout: float | None = None
    ) -> list[Any]:
        """Call every shard, each with its own arguments; the answers."""
        refs = [
            None if self.own(k) else self.call(k, method, *args[k])
            for k in range(self.number)
        ]
        # Its own last: meanwhile the others work.
        limit = {} if timeout is None else {"timeout": timeout}
        answers = [
            None
            if (own := self.own(k)) is None
            else getattr(own, method)(*args[k], **limit)
            for k in range(self.number)
        ]
        remote = iter(get([ref for ref in refs if ref is not None], timeout))
        return [
            answer if ref is None else next(remote)
            for ref, answer in zip(refs, answers, strict=True)
        ]


def get(refs: list[skate.ObjectRef[Any]], timeout: float | None = None) -> list[Any]:
    try:
        return skate.get(refs, timeout)
    except ActorDiedError as error:
        from .parameter_server import shard_died

        raise shard_died(error) from error


class ServerWorker:
    """What :meth:`ParameterServer.join` gives. For one thread.

    Attributes:
        rank: the worker's number.
        staleness: of its last gradient of which it is known: updates of the weights
            between those that it was computed with and its use.
        layout: how the parameters lie on the shards.
        adds_up: the server has no optimizer: after the first, pulls give gradients.
        num_late: gradients that were dropped, since a step was over without them.
    """

    def __init__(
        self,
        layout: Layout,
        rules: Rules,
        shards: Shards,
        rank: int,
        cohort: str,
        num_workers: int,
        *,
        check_finite: bool,
        waiting: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.layout = layout
        self._rules = rules
        self.adds_up = rules.optimizer is None
        self._shards = shards
        self._check_finite = check_finite
        self._waiting = waiting  # tells a run that this rank does not hang
        number = shards.number
        self.rank = rank
        self.staleness = 0
        self.num_late = 0
        self._tokens = shards.ask("join", [(rank, cohort, num_workers)] * number)
        self._versions = [0] * number
        self._wanted = [0] * number  # versions that the next pull waits for
        self._acks: list[skate.ObjectRef[Any]] = []
        self._buffers: list[list[Array] | None] = [None] * number
        # For shards of this process, whose gradients need not travel: used again.
        self._private: dict[int, list[Array]] = {}
        self._pushed: set[int] = set()  # shards that have this step's gradient
        self._pulled = False

    @property
    def version(self) -> int:
        """Of the weights pulled last; of the oldest, where shards differ."""
        return min(self._versions)

    def pull(self, timeout: float | None = None) -> Tree:
        """The weights to go on with: read-only, in the store's memory.

        In mode ``"sync"`` waits for the step to which this worker's last gradient
        belongs; in mode ``"stale"`` for workers that are too far behind. Arrays that
        lie on two shards are copied, all others mapped.

        Raises:
            GetTimeoutError: it took longer than ``timeout`` seconds.
            ActorDiedError: a shard is gone.
            Exception: what the optimizer, a function, raised on a shard.
        """
        return self._as_given(self.layout.tree_in(self.pull_blocks(timeout)))

    def pull_blocks(self, timeout: float | None = None) -> list[list[Array]]:
        """The weights as the shards keep them: shard -> its flat arrays."""
        with self._waiting():
            return self._pull(timeout)

    def _pull(self, timeout: float | None) -> list[list[Array]]:
        answers = self._shards.ask(
            "pull", [(self.rank, at_least) for at_least in self._wanted], timeout
        )
        while self._rules.mode == "sync":
            newest = max(version for version, _ in answers)
            behind = [k for k, (version, _) in enumerate(answers) if version < newest]
            if not behind:
                break
            # A step went on without this worker, on some of the shards so far.
            for k in behind:
                own = self._shards.own(k)
                answers[k] = (
                    own.pull(self.rank, newest)
                    if own
                    else get(
                        [self._shards.call(k, "pull", self.rank, newest)], timeout
                    )[0]
                )
        self._note(get(self._acks))
        self._acks.clear()
        self._versions = [version for version, _ in answers]
        self._wanted = [0] * self._shards.number
        self._pushed.clear()
        self._pulled = True
        refs = [ref for _, refs in answers for ref in refs]
        arrays = iter(get(refs))
        return [[next(arrays) for _ in refs] for _, refs in answers]

    def gradients(self) -> Tree:
        """Writable arrays for the next gradient, which travel without a copy.

        They are born in the object store, with arbitrary contents: write all of them
        and pass the tree to :meth:`push`.
        """
        blocks = [self.buffers(k) for k in range(self._shards.number)]
        return self._as_given(self.layout.tree_in(blocks))

    def buffers(self, shard: int) -> list[Array]:
        """The flat arrays in which the next gradient of a shard travels."""
        buffers = self._buffers[shard]
        if buffers is None:
            kinds = self.layout.parts[shard].blocks
            if self._shards.own(shard) is None:
                buffers = [skate.empty(size, dtype) for dtype, size in kinds]
            elif shard in self._private:
                buffers = self._private[shard]
            else:
                buffers = [np.empty(size, dtype) for dtype, size in kinds]
                self._private[shard] = buffers
            self._buffers[shard] = buffers
        return buffers

    def push(self, gradients: Tree) -> None:
        """Send a gradient: a tree like the parameters', computed with those pulled.

        A leaf may be :class:`Rows`, or a sparse tensor of torch: then only those rows
        travel and change. Returns at once; what goes wrong on a shard is raised by
        the next :meth:`pull`.

        Raises:
            ShapeMismatchError: the tree is not like the parameters: nothing is sent.
            FloatingPointError: with ``check_finite``, a leaf has NaN or infinity.
            ValueError: pushed already, with these weights, in mode ``"sync"``.
        """
        leaves = self._checked(gradients)
        sparse: dict[int, dict[int, tuple[Array, Array]]] = {}
        for i, leaf in enumerate(leaves):
            for shard, piece in self.layout.pieces_of[i]:
                if isinstance(leaf, Rows):
                    position = self.layout.parts[shard].pieces.index(piece)
                    chosen = (leaf.indices >= piece.start) & (leaf.indices < piece.stop)
                    sparse.setdefault(shard, {})[position] = (
                        np.ascontiguousarray(leaf.indices[chosen] - piece.start),
                        leaf.values[chosen].reshape(-1, piece.row_size),
                    )
                    continue
                block = self.buffers(shard)[piece.block][piece.offset : piece.end]
                first = piece.start * piece.row_size
                part = leaf.reshape(-1)[first : first + piece.size]
                if part.ctypes.data != block.ctypes.data:
                    np.copyto(block, part)
        for shard in range(self._shards.number):
            self.push_shard(shard, sparse.get(shard, {}))

    def push_shard(
        self, shard: int, sparse: Mapping[int, tuple[Array, Array]] | None = None
    ) -> None:
        """Send what is in :meth:`buffers` of one shard: its gradient is complete."""
        if not self._pulled:
            raise ValueError("pull() first: a gradient belongs to weights.")
        if self._rules.mode == "sync":
            if shard in self._pushed:
                raise ValueError(
                    "this worker has pushed a gradient for these weights already: "
                    "pull() the next ones first, or add your gradients up."
                )
            self._pushed.add(shard)
        form, arrays = self._message(shard, sparse or {})
        args = (self.rank, self._tokens[shard], self._versions[shard], form, *arrays)
        own = self._shards.own(shard)
        if own is not None:
            self._note([own.push(*args)])
        else:
            self._acks.append(self._shards.call(shard, "push", *args))
        self._buffers[shard] = None  # it is read-only from here on
        self._wanted[shard] = self._versions[shard] + (self._rules.mode == "sync")

    def step(self, gradients: Tree, timeout: float | None = None) -> Tree:
        """:meth:`push` a gradient, then :meth:`pull`."""
        self.push(gradients)
        return self.pull(timeout)

    def leave(self) -> None:
        """Take part no more: nobody waits for this worker any longer."""
        self._shards.ask("leave", [(self.rank,)] * self._shards.number)

    def state(self) -> dict[str, Any]:
        """See :meth:`ParameterServer.state`."""
        from .parameter_server import gather_state

        return gather_state(
            self.layout, self._shards.ask("state", [()] * self._shards.number)
        )

    def restore(self, state: Mapping[str, Any]) -> None:
        """See :meth:`ParameterServer.restore`; one worker does it for all."""
        from .parameter_server import spread_state

        parts = spread_state(self.layout, self._rules, state)
        self._shards.ask("restore", [(part,) for part in parts])

    def _message(
        self, shard: int, sparse: Mapping[int, tuple[Array, Array]]
    ) -> tuple[Form, list[Array]]:
        """Dense arrays travel whole; where rows do, the runs between them."""
        part = self.layout.parts[shard]
        if not sparse:
            blocks = self.buffers(shard)
            spans = [Span(i, 0, size) for i, (_, size) in enumerate(part.blocks)]
            return (tuple(spans), ()), list(blocks)
        runs: list[Span] = []
        for position, piece in enumerate(part.pieces):
            if position in sparse:
                continue
            last = runs[-1] if runs else None
            if last and (last.block, last.stop) == (piece.block, piece.offset):
                runs[-1] = Span(piece.block, last.start, piece.end)
            else:
                runs.append(Span(piece.block, piece.offset, piece.end))
        arrays = [self.buffers(shard)[b][start:stop] for b, start, stop in runs]
        for rows, values in sparse.values():
            arrays += [rows, values]
        return (tuple(runs), tuple(sparse)), arrays

    def _checked(self, gradients: Tree) -> list[Any]:
        """The leaves, as arrays or rows, in the order of the layout."""
        found = flatten(gradients, "params")
        expected = self.layout.leaves
        paths = [path for path, _ in found]
        if paths != [leaf.path for leaf in expected]:
            ours = {leaf.path for leaf in expected}
            lines = [f"{p} is missing" for p in sorted(ours - set(paths))]
            lines += [f"{p} is not expected" for p in sorted(set(paths) - ours)]
            raise ShapeMismatchError(
                f"worker {self.rank} pushed a gradient unlike the parameters: "
                + ("; ".join(lines[:8]) or "its leaves are in another order")
                + "."
            )
        leaves: list[Any] = []
        for leaf, (path, value) in zip(expected, found, strict=True):
            array = _as_gradient(value, path)
            inside = array.values if isinstance(array, Rows) else array
            shape = leaf.shape
            if isinstance(array, Rows):
                shape = (len(array.indices), *leaf.shape[1:])
                if array.indices.size and not (
                    array.indices.min() >= 0 and array.indices.max() < leaf.rows
                ):
                    raise ShapeMismatchError(
                        f"worker {self.rank}: rows {array.indices.min()} to "
                        f"{array.indices.max()} of {path}, which has {leaf.rows}."
                    )
            if inside.shape != shape or inside.dtype != leaf.dtype:
                raise ShapeMismatchError(
                    f"worker {self.rank} pushed {inside.dtype} {inside.shape} for "
                    f"{path}; expected {leaf.dtype} {shape}."
                )
            if self._check_finite and not np.isfinite(inside).all():
                raise FloatingPointError(
                    f"worker {self.rank}: the gradient of {path} has NaN or infinity."
                )
            leaves.append(array)
        return leaves

    def _as_given(self, tree: Tree) -> Tree:
        return map_leaves(as_tensor, tree) if self.layout.torch else tree

    def _note(self, answers: list[Answer]) -> None:
        answers = [Answer(*answer) for answer in answers]
        if answers:
            self.staleness = max(answer.staleness for answer in answers)
            self.num_late += not all(answer.accepted for answer in answers)


def _as_gradient(value: Any, path: str) -> Any:
    if isinstance(value, Rows):
        return Rows(np.asarray(value.indices), np.asarray(value.values))
    if getattr(value, "is_sparse", False):  # of torch
        value = value.coalesce()
        return Rows(value.indices()[0].numpy(), value.values().numpy())
    return as_array(value, path)
