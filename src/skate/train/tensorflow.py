"""Data-parallel training for Keras 3 on TensorFlow.

Operators in the graph write each gradient into the group's shared memory as soon as
backward has made it: compiled ones where there is a compiler, else functions of Python.
How the ranks step then: :mod:`.tensorflow_step`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import skate

from .context import Context, context

try:
    import tensorflow as tf
except ImportError as error:
    raise ImportError(
        "skate.train.tensorflow needs TensorFlow, which is not installed: "
        "pip install 'skate[tensorflow]'"
    ) from error

from .tensorflow_operator import NoOperatorError, Operators, compiled, from_python
from .tensorflow_step import Gradients, Replicated, Sharded, Step, why_not_sharded

# Gradients that travel together: few calls, and still in the cache when they do.
BUCKET_BYTES = 32 << 20


def DistributedOptimizer(  # noqa: N802  the name that the other frameworks use
    optimizer: Any,
    model: Any = None,
    *,
    operator: bool | str = "auto",
    shard: bool | str = "auto",
    bucket_bytes: int = BUCKET_BYTES,
) -> Any:
    """A Keras optimizer like ``optimizer``, whose gradients are means over all ranks.

    Pass it to ``model.compile``, with ``jit_compile=False``: XLA has no operators that
    call out. All ranks begin with rank 0's weights, and have the same ones, to the bit,
    after every step. On the inline engine functions of TensorFlow run eagerly, since
    its ranks are threads of one process.

    Where ranks share memory, and the optimizer is one of Keras that treats variables
    alike (all do, without ``global_clipnorm``, ``use_ema`` and loss scaling), each rank
    updates its share of the variables and takes the others from the ranks that updated
    them. Saving, ``optimizer.variables`` and ``get_weights`` see all of the state, on
    any rank, between its steps.

    Args:
        optimizer: an optimizer of Keras 3, not used so far.
        model: whose other variables (moving means, say) begin as rank 0's, too; built.
        operator: whether tensors are stored by operators that are compiled at their
            first use (some seconds; kept in ``~/.cache/skate``). ``"auto"``: if there
            is a compiler; rank 0 says on standard error if they are not used, and why.
        shard: whether ranks share the step, as above. ``"auto"``: if they can.
        bucket_bytes: how many gradients are stored together.

    Returns:
        An optimizer of a class with the same name, which is saved as ``optimizer`` is.
        Its attribute ``operator`` is ``"compiled"`` or ``"numpy_function"``, and
        ``choice`` says how it steps, and why, once it has.

    Raises:
        ValueError: ``operator=True``, and they could not be compiled; ``shard=True``,
            and ranks cannot share the step: at the first one.
        TypeError: not an optimizer of Keras 3.
        RuntimeError: used outside of a loop that ``skate.train.run`` runs.
    """
    import keras

    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            f"optimizer={optimizer!r} of type {type(optimizer).__name__}; expected an "
            "optimizer of Keras 3, such as keras.optimizers.SGD(0.1)."
        )
    if shard not in (True, False, "auto"):
        raise ValueError(f'shard={shard!r}; expected True, False or "auto".')
    if skate.init(ignore_reinit_error=True).engine == "inline":
        tf.config.run_functions_eagerly(True)
    operators = _operators(operator, context().rank)
    base: Any = type(optimizer)
    ranks = _Ranks(context(), base, operators, shard, bucket_bytes)
    made: Any = type(base.__name__, (base,), _members(base, ranks))
    made.__module__, made.__qualname__ = base.__module__, base.__qualname__
    if model is not None and model.built:
        ranks.broadcast(model.variables)
    # get_config knows all that the optimizer was made with.
    return made.from_config(optimizer.get_config())


def _members(base: Any, ranks: _Ranks) -> dict[str, Any]:
    """What a class that steps with all ranks has beside what ``base`` has."""

    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> None:
        if trainable_variables is None:
            trainable_variables = self._trainable_variables
        ranks.apply(self, list(grads), list(trainable_variables))

    def add_variable_from_reference(
        self: Any, reference_variable: Any, *args: Any, **kwargs: Any
    ) -> Any:
        made = base.add_variable_from_reference(
            self, reference_variable, *args, **kwargs
        )
        ranks.state.append((reference_variable, made))
        return made

    def variables(self: Any) -> list[Any]:
        if tf.executing_eagerly() and ranks.step is not None:
            ranks.step.complete(self)
        found: list[Any] = base.variables.fget(self)
        return found

    def load_own_variables(self: Any, store: Any) -> None:
        ranks.forget()
        base.load_own_variables(self, store)

    def set_weights(self: Any, weights: Any) -> None:
        ranks.forget()
        base.set_weights(self, weights)

    return {
        "add_variable_from_reference": add_variable_from_reference,
        "apply": apply,
        "choice": property(lambda self: ranks.choice),
        "load_own_variables": load_own_variables,
        "operator": ranks.operators.kind,
        "set_weights": set_weights,
        "variables": property(variables),
    }


def _operators(operator: bool | str, rank: int) -> Operators:
    if operator not in (True, False, "auto"):
        raise ValueError(f'operator={operator!r}; expected True, False or "auto".')
    if operator is False:
        return from_python()
    try:
        return compiled()
    except NoOperatorError as error:
        if operator is True:
            raise ValueError(f"operator=True: {error}.") from error
        if rank == 0:
            print(
                f"skate.train: gradients are stored by tf.numpy_function: {error}.",
                file=sys.stderr,
                flush=True,
            )
        return from_python()


class _Ranks:
    """What an optimizer of one rank knows of the others."""

    def __init__(
        self,
        context: Context,
        base: Any,
        operators: Operators,
        shard: bool | str,
        bucket_bytes: int,
    ) -> None:
        self._context = context
        self._base = base
        self._shard = shard
        self._bucket_bytes = bucket_bytes
        self._with_gradient: list[int] = []  # places among the variables
        self.operators = operators
        #: The optimizer's variables that belong to one of the model's, with that one.
        self.state: list[tuple[Any, Any]] = []
        self.step: Step | None = None  # how, known once there are gradients
        self.choice = "it has not stepped"

    def apply(self, optimizer: Any, grads: list[Any], variables: list[Any]) -> None:
        """The operations of one step with the means of the gradients; some are None."""
        there = [i for i, gradient in enumerate(grads) if gradient is not None]
        # A gradient of rows (of an embedding) becomes dense here.
        tensors = [tf.convert_to_tensor(grads[i]) for i in there]
        used = [variables[i] for i in there]
        if not optimizer.built:
            optimizer.build(variables)
        if self.step is None:
            with tf.init_scope():
                self.step = self._choose(optimizer, tensors, used)
                self.broadcast(variables)
        self.step.apply(optimizer, tensors, used)

    def _choose(self, optimizer: Any, grads: list[Any], variables: list[Any]) -> Step:
        context, operators = self._context, self.operators
        gradients = Gradients(context, grads, operators, self._bucket_bytes)
        places = {optimizer._var_key(v): i for i, v in enumerate(variables)}
        state = [
            (places[optimizer._var_key(owner)], variable)
            for owner, variable in self.state
            if optimizer._var_key(owner) in places
        ]
        if self._shard is False:
            why: str | None = "shard=False"
        else:
            why = why_not_sharded(optimizer, context, gradients, state)
        if why is None:
            self.choice = "sharded, with weights from their owners"
            return Sharded(context, self._base, gradients, operators, variables, state)
        if self._shard is True:
            raise ValueError(f"shard=True: {why}. Leave shard out.")
        self.choice = f"replicated: {why}"
        return Replicated(context, self._base, gradients)

    def forget(self) -> None:
        """The optimizer's state comes from elsewhere."""
        if self.step is not None:
            self.step.forget()

    def broadcast(self, variables: Sequence[Any]) -> None:
        """Give every rank the values of rank 0."""
        for variable in variables:
            value = variable.numpy()
            if value.dtype.kind in "fiu":
                variable.assign(self._context.broadcast(value))
