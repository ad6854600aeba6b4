"""``train.ParameterServer``: weights that live in shards, for many workers."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import skate
from skate.exceptions import ActorDiedError, ActorError, CheckpointError

from .layout import lay_out
from .optimizers import Optimizer, check_optimizer
from .server_worker import ServerWorker, Shards
from .shard import Rules, ShardStats
from .shard_host import (
    HostedShard,
    ShardActor,
    has_processes,
    host,
    will_be_hosted,
)
from .tree import Tree, as_tensor, differences, map_leaves

MODES = ("sync", "async", "stale")
PLACEMENTS = ("actors", "workers")


class ParameterServer:
    """The arrays of a tree, spread over shards that apply the gradients of workers.

    Make it where the workers are started and pass it to them; each calls
    :meth:`join`, and then pulls weights and pushes gradients::

        server = train.ParameterServer(params, num_shards=2, optimizer=train.SGD(0.1))

        def loop(server):
            worker = server.join()
            for batch in batches:
                params = worker.pull()
                worker.push(gradients_of(params, batch))

    Weights are published as objects of the store, one version after the other, which
    workers map instead of copying. Shards end with the server's last handle.

    Args:
        params: a tree of numpy or torch arrays, of dicts, lists and tuples.
        num_shards: over which it is spread, by whole arrays where that is even.
        optimizer: ``train.SGD``, ``train.Adam``, or a function of ``(weights,
            gradient, state, step)`` that changes the flat array ``weights`` in place
            and may keep what it wants in the dict ``state``. None only adds up: what
            workers pull is then the result of the last step.
        mode: ``"sync"``: a step takes one gradient of every worker. ``"async"``: each
            gradient is applied as it comes. ``"stale"``: so, too, but ``pull`` holds
            up a worker that is more than ``staleness`` steps ahead of another.
        num_workers: that take part; None: as many as the run has ranks.
        staleness: steps that a worker may be ahead, in mode ``"stale"``.
        backup_workers: how many of a step's gradients need not be waited for, in mode
            ``"sync"``; those that come later are dropped.
        deadline: seconds after which a worker for whom others wait is given up; it is
            taken in again with its next gradient. None waits for ever.
        reduce: ``"mean"`` or ``"sum"`` of a step's gradients; None: the sum without an
            optimizer, else the mean.
        placement: ``"actors"``: shards are processes of their own. ``"workers"``: they
            live in the ranks of the run, and end with it.
        check_finite: refuse gradients with NaN or infinity, by name.

    Raises:
        ValueError: an option out of range, too many shards, or a parameter that would
            be on two of them.
        TypeError: a leaf that is no array of numbers, or an unusable optimizer.
    """

    def __init__(
        self,
        params: Tree,
        *,
        num_shards: int = 1,
        optimizer: Optimizer,
        mode: str = "sync",
        num_workers: int | None = None,
        staleness: int = 1,
        backup_workers: int = 0,
        deadline: float | None = None,
        reduce: str | None = None,
        placement: str = "actors",
        check_finite: bool = False,
    ) -> None:
        check_optimizer(optimizer)
        _check_word("mode", mode, MODES)
        _check_word("placement", placement, PLACEMENTS)
        reduce = reduce or ("sum" if optimizer is None else "mean")
        _check_word("reduce", reduce, ("mean", "sum"))
        if optimizer is None and mode != "sync":
            raise ValueError(
                f'optimizer=None with mode={mode!r}: only mode="sync" has steps whose '
                "gradients can be added up."
            )
        if num_workers is not None and num_workers < 1:
            raise ValueError(f"num_workers={num_workers!r}; expected at least 1.")
        if backup_workers < 0 or (num_workers and backup_workers >= num_workers):
            raise ValueError(
                f"backup_workers={backup_workers!r}; expected 0 or more, and fewer "
                "than there are workers."
            )
        if backup_workers and mode != "sync":
            raise ValueError(f'backup_workers are for mode="sync", not {mode!r}.')
        if staleness < 0:
            raise ValueError(f"staleness={staleness!r}; expected 0 or more steps.")
        if deadline is not None and not deadline > 0:
            raise ValueError(f"deadline={deadline!r}; expected seconds, or None.")
        self._layout = lay_out(params, num_shards)
        for leaf in self._layout.leaves:
            if leaf.dtype.kind != "f" and (optimizer is not None or reduce == "mean"):
                raise ValueError(
                    f"{leaf.path} is {leaf.dtype}: only floats can be averaged or "
                    "optimized. Leave counters out of params."
                )
        self._rules = Rules(
            mode,
            optimizer,
            reduce,
            num_workers or 0,
            backup_workers,
            staleness,
            deadline,
        )
        self._id = uuid.uuid4().hex[:12]
        self._check_finite = check_finite
        self.mode = mode
        blocks = self._layout.split(params)
        self._actors: list[Any] | None = None
        self._initial: list[list[skate.ObjectRef[Any]]] = []
        if placement == "actors" or not has_processes():
            self._actors = [
                skate.remote(ShardActor)
                .options(num_cpus=0)
                .remote(part, self._rules, *weights)
                for part, weights in zip(self._layout.parts, blocks, strict=True)
            ]
        else:
            self._initial = [[skate.put(w) for w in weights] for weights in blocks]
            will_be_hosted(self)

    @property
    def num_shards(self) -> int:
        return len(self._layout.parts)

    def join(self, worker: int | None = None) -> ServerWorker:
        """Take part as ``worker``, by default the rank of the run that calls.

        A worker that is here already is replaced: it was restarted, say. A rank whose
        loop has returned leaves.

        Raises:
            ValueError: no number, outside of a run; or no ``num_workers``.
        """
        from .context import current_context

        context = current_context()
        if worker is None:
            if context is None:
                raise ValueError(
                    "join() needs a number outside of skate.train.run: join(worker), "
                    "another one for each worker."
                )
            worker = context.rank
        if context is None:
            cohort, size = "", self._rules.num_workers
            if not size and self.mode != "async":
                raise ValueError(
                    f"mode={self.mode!r} must know for whom to wait: pass num_workers "
                    "to ParameterServer, or join in a loop of skate.train.run."
                )
        else:
            cohort, size = context.run_id, context.world_size
        if self._rules.backup_workers >= max(size, 1):
            raise ValueError(
                f"backup_workers={self._rules.backup_workers!r} of {size} workers: a "
                "step would wait for nobody."
            )
        if self._actors is not None:
            shards = Shards(actors=self._actors)
        else:
            if context is None or not context.hosts:
                raise ValueError(
                    'placement="workers" is for loops of skate.train.run, whose ranks '
                    'host the shards. Use placement="actors" here.'
                )
            key = f"{self._id}/{cohort}"
            for shard in range(context.rank, self.num_shards, context.world_size):
                part = self._layout.parts[shard]
                weights = skate.get(self._initial[shard])
                host((key, shard), HostedShard(part, self._rules, weights))
            context.barrier()  # all shards can be called from here on
            shards = Shards(
                hosts=context.hosts, key=key, number=self.num_shards, rank=context.rank
            )
        joined = ServerWorker(
            self._layout,
            self._rules,
            shards,
            worker,
            cohort,
            size,
            check_finite=self._check_finite,
            waiting=contextlib.nullcontext if context is None else context.waiting,
        )
        if context is not None:
            context.at_end.append(joined.leave)  # others may have steps left
        return joined

    def watch(self, refs: Mapping[int, skate.ObjectRef[Any]]) -> None:
        """Let each worker leave when its ref is ready: its task ended, or has died.

        Without it, a worker that dies is noticed by the ``deadline`` alone.
        """
        for worker, ref in refs.items():
            self._ask("watch", worker, [ref])

    def pull(self, timeout: float | None = None) -> Tree:
        """The weights as they are; in the async modes, of any version."""
        answers = self._ask("pull", -1, 0, timeout=timeout)
        blocks = [skate.get(refs) for _, refs in answers]
        tree = self._layout.tree_in(blocks)
        return map_leaves(as_tensor, tree) if self._layout.torch else tree

    def stats(self) -> list[ShardStats]:
        """What each shard has seen: see :class:`ShardStats`."""
        return self._ask("stats")

    def state(self) -> dict[str, Any]:
        """A checkpoint: weights, the optimizer's state, and the version, as trees."""
        return gather_state(self._layout, self._ask("state"))

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave, also over another number of shards.

        To be called before workers pull.

        Raises:
            CheckpointError: it is of other parameters, or of another optimizer.
        """
        parts = spread_state(self._layout, self._rules, state)
        shards = self._need_actors()
        skate.get([s.restore.remote(p) for s, p in zip(shards, parts, strict=True)])

    def close(self) -> None:
        """End the shards. May be called twice."""
        for actor in self._actors or []:
            skate.kill(actor)

    def _need_actors(self) -> list[Any]:
        if self._actors is None:
            raise ValueError(
                'with placement="workers" the shards live in the ranks of the run: '
                "ask the worker that join() gave, and report what you want to keep."
            )
        return self._actors

    def _ask(self, method: str, *args: Any, timeout: float | None = None) -> list[Any]:
        shards = self._need_actors()
        refs = [getattr(shard, method).remote(*args) for shard in shards]
        try:
            return skate.get(refs, timeout)
        except ActorDiedError as error:
            raise shard_died(error) from error


def shard_died(error: ActorError) -> ActorDiedError:
    return ActorDiedError(
        f"a shard of the parameter server is gone, and the weights that it had: "
        f"{error} Make a new server, and restore() it from the last checkpoint of its "
        "state()."
    )


def _check_word(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        words = ", ".join(f'"{word}"' for word in known)
        raise ValueError(f"{name}={value!r}; expected one of {words}.")


def gather_state(layout: Any, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What the shards say of themselves, as one tree each of weights and state."""
    names = range(max(len(arrays) for p in parts for arrays in p["optimizer"]))

    def whole(blocks: list[list[Any]]) -> Tree:
        return map_leaves(np.array, layout.tree_in(blocks))

    return {
        "weights": whole([p["weights"] for p in parts]),
        "optimizer": [
            whole([[arrays[i] for arrays in p["optimizer"]] for p in parts])
            for i in names
        ],
        "function": [p["function"] for p in parts],
        "versions": [p["version"] for p in parts],
        "gradients": [p["gradients"] for p in parts],
    }


def spread_state(
    layout: Any, rules: Rules, state: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The reverse, perhaps for another number of shards."""
    unlike = differences(state["weights"], layout.like(), "params")
    if unlike:
        raise CheckpointError(
            "this state is of other parameters: " + "; ".join(unlike[:8])
        )
    names = getattr(rules.optimizer, "state_names", ())
    if len(state["optimizer"]) != len(names):
        raise CheckpointError(
            f"this state is of another optimizer: it has {len(state['optimizer'])} "
            f"arrays for each parameter, {rules.optimizer!r} has {len(names)}."
        )
    number = len(layout.parts)
    same = len(state["versions"]) == number
    if not same and any(any(blocks) for blocks in state["function"]):
        raise CheckpointError(
            f"this state is of {len(state['versions'])} shards, here are {number}: "
            "what an optimizer of your own keeps cannot be spread anew."
        )
    weights = layout.split(state["weights"])
    moments = [layout.split(tree) for tree in state["optimizer"]]
    version, gradients = max(state["versions"]), max(state["gradients"])
    return [
        {
            "weights": weights[k],
            "optimizer": [[m[k][b] for m in moments] for b in range(len(weights[k]))],
            "function": state["function"][k] if same else [{} for _ in weights[k]],
            "version": state["versions"][k] if same else version,
            "gradients": state["gradients"][k] if same else gradients,
        }
        for k in range(number)
    ]
