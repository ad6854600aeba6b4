"""How the ranks of a Keras model step together.

Each rank steps all variables with the mean of all gradients; or, where ranks share
memory, each steps its share of the variables, with their state, and takes the others
from the ranks that own them. Keras goes over a variable's memory several times in a
step, so that this halves what two ranks do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from skate import kernels

from .context import Context
from .tensorflow_memory import Places, buckets
from .tensorflow_operator import Operators

# Variables that are stored together once they have been stepped, still in the cache.
STEPPED_BYTES = 4 << 20


class Step(Protocol):
    """One way to step; made when the gradients are known."""

    def apply(self, optimizer: Any, grads: list[Any], variables: list[Any]) -> None:
        """Add the operations of one step to the graph. No gradient is None."""

    def complete(self, optimizer: Any) -> None:
        """Have all of the optimizer's state here, between two steps."""

    def forget(self) -> None:
        """The optimizer's state is about to be set by other means."""


class Gradients:
    """The shared memory of one model's gradients."""

    def __init__(
        self,
        context: Context,
        grads: Sequence[Any],
        operators: Operators,
        bucket_bytes: int,
    ) -> None:
        self.places = Places(context, grads)
        for flat in self.places.flats.values():
            flat.fill(0)  # the gaps, too
        self._operators = operators
        self._bucket_bytes = bucket_bytes

    def stored(self, grads: Sequence[Any]) -> list[Any]:
        """What is there when all gradients are in the shared memory."""
        views = self.places.views
        # In the order in which backward makes them.
        backwards = reversed(range(len(views)))
        return [
            self._operators.store(
                [grads[i] for i in bucket], [views[i] for i in bucket]
            )
            for bucket in buckets(backwards, self.places.nbytes, self._bucket_bytes)
        ]


class Replicated:
    """Every rank steps all variables."""

    def __init__(self, context: Context, base: Any, gradients: Gradients) -> None:
        self._context = context
        self._base = base
        self._gradients = gradients

    def apply(self, optimizer: Any, grads: list[Any], variables: list[Any]) -> None:
        with tf.control_dependencies(self._gradients.stored(grads)):
            means = _means(self._reduce, grads)
        self._base.apply(optimizer, means, variables)

    def complete(self, optimizer: Any) -> None:
        pass

    def forget(self) -> None:
        pass

    def _reduce(self) -> list[np.ndarray]:
        places = self._gradients.places
        for flat in places.flats.values():
            self._context.allreduce(flat, op="mean")
        return places.views


class Sharded:
    """Every rank steps the variables that it owns.

    Between two steps the weights are the same everywhere. Of the optimizer's state a
    rank has its own part; the rest is in the owners' memory, for :meth:`complete`.
    """

    def __init__(
        self,
        context: Context,
        base: Any,
        gradients: Gradients,
        operators: Operators,
        variables: Sequence[Any],
        state: Sequence[tuple[int, Any]],
    ) -> None:
        """``state``: variables of the optimizer, each with its variable's number."""
        self._context = context
        self._base = base
        self._gradients = gradients
        self._operators = operators
        self._state = state
        places = gradients.places
        self._owners = owners = owners_of(places.nbytes, context.world_size)
        self._mine = [i for i, owner in enumerate(owners) if owner == context.rank]
        self._others = [i for i, owner in enumerate(owners) if owner != context.rank]
        by_rank = _of_all_ranks(places, context)
        #: Of this rank's variables: the gradients of all ranks, by rank.
        self._sources = [[views[i] for views in by_rank] for i in self._mine]
        weights = Places(context, variables)
        by_rank = _of_all_ranks(weights, context)
        self._weights = weights.views
        self._weights_of_others = [by_rank[owners[i]][i] for i in self._others]
        kept = Places(context, [variable for _, variable in state])
        by_rank = _of_all_ranks(kept, context)
        self._kept = kept.views
        self._kept_by_owner = [by_rank[owners[i]][k] for k, (i, _) in enumerate(state)]
        # The iteration whose state is in the memory of each rank; -1: none is.
        self._published = context.empty(1, np.int64)
        self._published[:] = -1
        self._published_by = context.group.peers(self._published) or []
        self._completed = -1
        context.barrier()

    def apply(self, optimizer: Any, grads: list[Any], variables: list[Any]) -> None:
        with tf.control_dependencies(self._gradients.stored(grads)):
            means = _means(self._reduce, [grads[i] for i in self._mine])
        self._base.apply(optimizer, means, [variables[i] for i in self._mine])
        with tf.control_dependencies(self._stored(variables)):
            iteration = _value(optimizer.iterations)
            met = tf.numpy_function(self._exchange, [iteration], tf.int64)
        with tf.control_dependencies([met]):
            others = [_variable(variables[i]) for i in self._others]
            self._operators.load(others, self._weights_of_others)

    def _stored(self, variables: list[Any]) -> list[Any]:
        """What is there when this rank's weights and state are in the shared memory."""
        state_of: dict[int, list[int]] = {i: [] for i in self._mine}
        for k, (i, _) in enumerate(self._state):
            if i in state_of:
                state_of[i].append(k)
        stored = []
        nbytes = self._gradients.places.nbytes
        for bucket in buckets(self._mine, nbytes, STEPPED_BYTES):
            state = [k for i in bucket for k in state_of[i]]
            values = [_value(variables[i]) for i in bucket]
            values += [_value(self._state[k][1]) for k in state]
            places = [self._weights[i] for i in bucket]
            places += [self._kept[k] for k in state]
            stored.append(self._operators.store(values, places))
        return stored

    def complete(self, optimizer: Any) -> None:
        now = int(optimizer.iterations.numpy())
        if now == self._completed:
            return
        for (i, variable), part in zip(self._state, self._kept_by_owner, strict=True):
            owner = self._owners[i]
            is_there = self._published_by[owner][0] == now
            if is_there and owner != self._context.rank:
                variable.assign(part.copy())
        self._completed = now

    def forget(self) -> None:
        self._published[0] = -1
        self._completed = -1

    def _reduce(self) -> list[np.ndarray]:
        self._context.barrier()  # the gradients of all ranks are there
        views = self._gradients.places.views
        means = [views[i] for i in self._mine]
        for mean, sources in zip(means, self._sources, strict=True):
            kernels.reduce(sources, "mean", out=mean)
        return means

    def _exchange(self, iteration: Any) -> Any:
        self._published[0] = iteration
        self._context.barrier()  # the weights of all ranks are there
        return np.int64(iteration)


def owners_of(nbytes: Sequence[int], world_size: int) -> list[int]:
    """The rank that owns each variable: shares of about as many bytes, in order."""
    total = sum(nbytes)
    starts = accumulate(nbytes, initial=0)
    middles = [start + size / 2 for start, size in zip(starts, nbytes, strict=False)]
    return [min(world_size - 1, int(middle * world_size / total)) for middle in middles]


def why_not_sharded(
    optimizer: Any,
    context: Context,
    gradients: Gradients,
    state: Sequence[tuple[int, Any]],
) -> str | None:
    """Why ranks cannot share the step; None: they can. The same on every rank."""
    places = gradients.places
    if context.world_size == 1:
        return "there is one rank"
    if any(view.dtype.name not in ("float32", "float64") for view in places.views):
        return "variables are neither of float32 nor of float64"
    if len(set(owners_of(places.nbytes, context.world_size))) < context.world_size:
        return "there are too few variables for the ranks"
    if not type(optimizer).__module__.startswith("keras."):
        return "the optimizer is not of Keras itself"
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return "a LossScaleOptimizer looks at all gradients"
    if optimizer.global_clipnorm is not None:
        return "global_clipnorm looks at all gradients"
    if optimizer.use_ema:
        return "use_ema averages all variables in the step"
    known = {id(variable) for _, variable in state}
    if any(len(v.shape) and id(v) not in known for v in optimizer._variables):
        return "the optimizer has state that is not of one variable"
    if places.peers(context) is None:
        return "the ranks share no memory"
    return None


def _of_all_ranks(places: Places, context: Context) -> list[list[np.ndarray]]:
    by_rank = places.peers(context)
    assert by_rank is not None  # why_not_sharded has looked
    return by_rank


def _means(reduce: Any, grads: Sequence[Any]) -> list[Any]:
    """The arrays that ``reduce`` returns, as tensors like ``grads``."""
    means: list[Any] = tf.numpy_function(reduce, [], [g.dtype for g in grads])
    for mean, gradient in zip(means, grads, strict=True):
        mean.set_shape(gradient.shape)
    return means


def _variable(variable: Any) -> Any:
    """TensorFlow's variable of one of Keras."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def _value(variable: Any) -> Any:
    """What it holds at this point of the graph."""
    return tf.convert_to_tensor(_variable(variable))
