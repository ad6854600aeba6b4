"""Data-parallel training for Keras 3 on TensorFlow.

Operators in the graph write each gradient into the group's shared memory as soon as
backward has made it; the last of them reduces. They are compiled against the installed
TensorFlow where there is a compiler; else ``tf.numpy_function`` writes them by buckets.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import skate

from .context import Context, context

try:
    import tensorflow as tf
except ImportError as error:
    raise ImportError(
        "skate.train.tensorflow needs TensorFlow, which is not installed: "
        "pip install 'skate[tensorflow]'"
    ) from error

from .tensorflow_operator import NoOperatorError, load

# Gradients that one tf.numpy_function writes: fewer calls of Python, less overlap.
BUCKET_BYTES = 32 << 20


def DistributedOptimizer(  # noqa: N802  the name that the other frameworks use
    optimizer: Any,
    model: Any = None,
    *,
    operator: bool | str = "auto",
    bucket_bytes: int = BUCKET_BYTES,
) -> Any:
    """A Keras optimizer like ``optimizer``, whose gradients are means over all ranks.

    Pass it to ``model.compile``, with ``jit_compile=False``: XLA has no operators that
    call out. All ranks begin with rank 0's weights. On the inline engine functions of
    TensorFlow run eagerly, since its ranks are threads of one process.

    Args:
        optimizer: an optimizer of Keras 3, not used so far.
        model: whose other variables (moving means, say) begin as rank 0's, too; built.
        operator: whether gradients are stored by an operator that is compiled at its
            first use (some seconds; kept in ``~/.cache/skate``). ``"auto"``: if there
            is a compiler; rank 0 says on standard error if it is not used, and why.
            The attribute ``operator`` of what is returned tells, too.
        bucket_bytes: how many gradients travel together without it.

    Raises:
        ValueError: ``operator=True``, and it could not be compiled.
        TypeError: not an optimizer of Keras 3.
        RuntimeError: used outside of a loop that ``skate.train.run`` runs.
    """
    import keras

    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            f"optimizer={optimizer!r} of type {type(optimizer).__name__}; expected an "
            "optimizer of Keras 3, such as keras.optimizers.SGD(0.1)."
        )
    if skate.init(ignore_reinit_error=True).engine == "inline":
        tf.config.run_functions_eagerly(True)
    store = _store(operator, context().rank)
    reducer = _Reducer(context(), bucket_bytes, store)
    base: Any = type(optimizer)

    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        if trainable_variables is None:
            trainable_variables = self._trainable_variables
        grads, variables = list(grads), list(trainable_variables)
        return base.apply(self, reducer.reduced(grads, variables), variables)

    members = {
        "apply": apply,
        "operator": "numpy_function" if store is None else "compiled",
    }
    made: Any = type(f"Distributed{base.__name__}", (base,), members)
    if model is not None and model.built:
        reducer.broadcast(model.variables)
    # get_config knows all that the optimizer was made with.
    return made.from_config(optimizer.get_config())


Store = Callable[[Sequence[Any], Sequence[np.ndarray]], Any]


def _store(operator: bool | str, rank: int) -> Store | None:
    """The compiled operator, or None: ``tf.numpy_function`` takes its place."""
    if operator not in (True, False, "auto"):
        raise ValueError(f'operator={operator!r}; expected True, False or "auto".')
    if operator is False:
        return None
    try:
        return load()
    except NoOperatorError as error:
        if operator is True:
            raise ValueError(f"operator=True: {error}.") from error
        if rank == 0:
            print(
                f"skate.train: gradients are stored by tf.numpy_function: {error}.",
                file=sys.stderr,
                flush=True,
            )
        return None


class _Reducer:
    """The shared memory of one model's gradients, and the operators that use it."""

    def __init__(
        self, context: Context, bucket_bytes: int, store: Store | None
    ) -> None:
        self._context = context
        self._bucket_bytes = bucket_bytes
        self._store = store
        self._views: list[Any] = []
        self._flats: list[Any] = []

    def reduced(self, grads: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """Tensors of the mean gradients; None stays None."""
        there = [i for i, gradient in enumerate(grads) if gradient is not None]
        # A gradient of rows (of an embedding) becomes dense here.
        tensors = [tf.convert_to_tensor(grads[i]) for i in there]
        if not self._views:
            with tf.init_scope():
                self._allocate(tensors)
                self.broadcast(variables)
        with tf.control_dependencies(self._written(tensors)):
            means = tf.numpy_function(
                self._reduce, [], [tensor.dtype for tensor in tensors]
            )
        found: list[Any] = [None] * len(grads)
        for i, mean, tensor in zip(there, means, tensors, strict=True):
            mean.set_shape(tensor.shape)
            found[i] = mean
        return found

    def _written(self, tensors: Sequence[Any]) -> list[Any]:
        """What is there when all gradients are in the shared memory."""
        written = []
        for bucket in self._buckets(tensors):
            gradients = [tensors[i] for i in bucket]
            views = [self._views[i] for i in bucket]
            if self._store is None:
                write = _write_into(views)
                written.append(tf.numpy_function(write, gradients, tf.int64))
            else:
                written.append(self._store(gradients, views))
        return written

    def broadcast(self, variables: Sequence[Any]) -> None:
        """Give every rank the values of rank 0."""
        for variable in variables:
            value = np.array(variable)
            if value.dtype.kind in "fiu":
                variable.assign(self._context.broadcast(value))

    def _allocate(self, tensors: Sequence[Any]) -> None:
        sizes: dict[Any, int] = {}
        places = []
        for tensor in tensors:
            dtype = np.dtype(tensor.dtype.as_numpy_dtype)
            count = int(np.prod(tensor.shape, dtype=np.int64))
            # TensorFlow reads in place what lies on a multiple of 64 bytes.
            start = -(-sizes.get(dtype, 0) * dtype.itemsize // 64) * 64
            places.append((dtype, start // dtype.itemsize, count, tensor.shape))
            sizes[dtype] = start // dtype.itemsize + count
        flats = {d: self._context.empty(size, d) for d, size in sizes.items()}
        for flat in flats.values():
            flat.fill(0)  # the gaps, too
        self._flats = list(flats.values())
        self._views = [
            flats[dtype][start : start + count].reshape(tuple(shape))
            for dtype, start, count, shape in places
        ]

    def _buckets(self, tensors: Sequence[Any]) -> list[list[int]]:
        """Gradients that travel together, in the order in which backward makes them."""
        buckets: list[list[int]] = [[]]
        size = 0
        for i in reversed(range(len(tensors))):
            nbytes = self._views[i].nbytes
            if buckets[-1] and size + nbytes > self._bucket_bytes:
                buckets.append([])
                size = 0
            buckets[-1].append(i)
            size += nbytes
        return buckets

    def _reduce(self) -> list[Any]:
        for flat in self._flats:
            self._context.allreduce(flat, op="mean")
        return self._views


def _write_into(views: Sequence[np.ndarray]) -> Callable[..., Any]:
    def write(*gradients: Any) -> Any:
        for view, gradient in zip(views, gradients, strict=True):
            np.copyto(view, gradient)
        return np.int64(len(views))

    return write
