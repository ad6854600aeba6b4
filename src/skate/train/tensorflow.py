"""Data-parallel training for Keras 3 on TensorFlow.

Operators in the graph (``tf.numpy_function``) write each bucket of gradients into the
group's shared memory as soon as backward has made it; the last of them reduces.
"""

from __future__ import annotations

from collections.abc import Sequence
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

# Gradients that are written by one operator: fewer calls of Python, less overlap.
BUCKET_BYTES = 32 << 20


def DistributedOptimizer(  # noqa: N802  the name that the other frameworks use
    optimizer: Any, model: Any = None, *, bucket_bytes: int = BUCKET_BYTES
) -> Any:
    """A Keras optimizer like ``optimizer``, whose gradients are means over all ranks.

    Pass it to ``model.compile``, with ``jit_compile=False``: XLA has no operators that
    call out. All ranks begin with rank 0's weights. On the inline engine functions of
    TensorFlow run eagerly, since its ranks are threads of one process.

    Args:
        optimizer: an optimizer of Keras 3, not used so far.
        model: whose other variables (moving means, say) begin as rank 0's, too; built.
        bucket_bytes: how many gradients travel together.

    Raises:
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
    reducer = _Reducer(context(), bucket_bytes)
    base: Any = type(optimizer)

    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        if trainable_variables is None:
            trainable_variables = self._trainable_variables
        grads, variables = list(grads), list(trainable_variables)
        return base.apply(self, reducer.reduced(grads, variables), variables)

    made: Any = type(f"Distributed{base.__name__}", (base,), {"apply": apply})
    if model is not None and model.built:
        reducer.broadcast(model.variables)
    # get_config knows all that the optimizer was made with.
    return made.from_config(optimizer.get_config())


class _Reducer:
    """The shared memory of one model's gradients, and the operators that use it."""

    def __init__(self, context: Context, bucket_bytes: int) -> None:
        self._context = context
        self._bucket_bytes = bucket_bytes
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
        written = [
            tf.numpy_function(
                self._write_into(bucket), [tensors[i] for i in bucket], tf.int64
            )
            for bucket in self._buckets(tensors)
        ]
        means = tf.numpy_function(
            self._reduce, written, [tensor.dtype for tensor in tensors]
        )
        found: list[Any] = [None] * len(grads)
        for i, mean, tensor in zip(there, means, tensors, strict=True):
            mean.set_shape(tensor.shape)
            found[i] = mean
        return found

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

    def _write_into(self, bucket: Sequence[int]) -> Any:
        views = [self._views[i] for i in bucket]

        def write(*gradients: Any) -> Any:
            for view, gradient in zip(views, gradients, strict=True):
                np.copyto(view, gradient)
            return np.int64(len(views))

        return write

    def _reduce(self, *_written: Any) -> list[Any]:
        for flat in self._flats:
            self._context.allreduce(flat, op="mean")
        return self._views
