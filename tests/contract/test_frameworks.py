"""Torch, Keras and JAX on ranks: the heavy imports happen in the ranks' processes."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skate import train

pytestmark = pytest.mark.usefixtures("engine")


def needs(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


# torch, on a parameter server ---------------------------------------------------------


def rows(step: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(step)
    x = rng.normal(size=(12, 4)).astype(np.float32)
    return x, x.sum(axis=1, keepdims=True)


def make_model() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    )


def descend(model: Any, finish: Any, part: slice, passes: int) -> Any:
    import torch

    for step in range(4):
        x, y = (torch.from_numpy(array[part]) for array in rows(step))
        for _ in range(passes):
            ((model(x) - y).square().mean() / passes).backward()
        finish()
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()


def on_server(config: dict[str, Any]) -> None:
    import torch

    from skate.train.served_model import ServedModel

    context = train.context()
    model = make_model()
    served = ServedModel(config["server"].join(), model, overlap=config["overlap"])
    local = None
    if config["local"]:
        local = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    part = slice(context.rank * 6, context.rank * 6 + 6)
    weights = descend(model, lambda: served.step(local), part, config["passes"])
    context.report({"weights": weights})


@pytest.mark.parametrize("form", ["workers, overlapping", "actors", "sums"])
def test_a_torch_model_on_a_server_learns_what_one_process_does(form: str) -> None:
    torch = pytest.importorskip("torch")
    from skate.train.served_model import parameters_of

    model = make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def finish() -> None:
        sgd.step()
        sgd.zero_grad()

    alone = descend(model, finish, slice(None), 1)
    local = form == "sums"
    server = train.ParameterServer(
        parameters_of(make_model()),
        num_shards=2,
        optimizer=None if local else train.SGD(0.1, momentum=0.9),
        reduce="mean",
        placement="workers" if "workers" in form else "actors",
    )
    config = {
        "server": server,
        "local": local,
        "overlap": "overlapping" in form,
        "passes": 2 if form == "actors" else 1,
    }
    result = train.run(on_server, 2, config=config)
    np.testing.assert_allclose(result.metrics["weights"], alone, rtol=1e-4, atol=1e-5)
    server.close()


# Keras -------------------------------------------------------------------------------


def keras_loop(cache: str) -> None:
    import os

    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["XDG_CACHE_HOME"] = cache
    import keras
    import tensorflow as tf

    from skate.train.tensorflow import DistributedOptimizer

    tf.config.threading.set_intra_op_parallelism_threads(1)
    context = train.context()
    x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    y = x.sum(axis=1, keepdims=True)

    def fit(
        seed: int, make: Any, part: slice, size: int, clip: Any = None, **options: Any
    ) -> Any:
        keras.utils.set_random_seed(seed)
        model = keras.Sequential(
            [
                keras.layers.Input((4,)),
                keras.layers.Dense(8, activation="tanh"),
                keras.layers.Dense(1),
            ]
        )
        sgd = keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=clip)
        sgd = make(sgd, model, **options)
        model.compile(sgd, loss="mse", jit_compile=False)
        model.fit(x[part], y[part], size, epochs=2, shuffle=False, verbose=0)
        if make is DistributedOptimizer:
            ways.append((sgd.operator, sgd.choice))
        return model

    def weights(model: Any) -> np.ndarray:
        return np.concatenate([w.ravel() for w in model.get_weights()])

    def state(model: Any) -> np.ndarray:
        return np.concatenate([v.numpy().ravel() for v in model.optimizer.variables])

    def spread(values: np.ndarray) -> float:
        return float(np.ptp(context.group.allgather(values), axis=0).max())

    ways: list[tuple[str, str]] = []
    part = slice(context.rank, None, 2)
    own = context.rank, DistributedOptimizer, part, 8
    os.environ["CXX"] = "no-such-compiler"
    with pytest.raises(ValueError, match=r"operator=True: there is no g\+\+"):
        fit(*own, operator=True)
    called = fit(*own)
    del os.environ["CXX"]
    mine = fit(*own)
    each = fit(*own, shard=False)
    with pytest.raises(ValueError, match="shard=True: global_clipnorm looks at all"):
        fit(*own, clip=1.0, shard=True)
    report = {
        "spread": [spread(weights(mine)), spread(state(mine))],
        "weights": [weights(model) for model in (mine, called, each)],
        "state": [state(model) for model in (mine, called, each)],
    }
    if context.rank == 0:
        mine.save(f"{cache}/model.keras")  # the other rank does nothing for it
        read = keras.models.load_model(f"{cache}/model.keras")
        report["read"] = [type(read.optimizer) is keras.optimizers.SGD, state(read)]
        report["alone"] = weights(fit(0, lambda sgd, _: sgd, slice(None), 16))
    context.report(report | {"ways": ways})


@pytest.mark.timeout(300)
@pytest.mark.differs(
    inline="is the same with eager functions, and takes long to import"
)
def test_keras_models_learn_what_one_with_all_rows_does(
    engine: str, tmp_path: Path
) -> None:
    needs("tensorflow")
    metrics = train.run(keras_loop, 2, config=str(tmp_path)).metrics
    assert metrics["spread"] == [0.0, 0.0]
    mine, called, each = metrics["weights"]
    np.testing.assert_allclose(mine, metrics["alone"], atol=1e-5)
    np.testing.assert_array_equal(mine, called)
    np.testing.assert_array_equal(mine, each)
    mine, called, each = metrics["state"]
    np.testing.assert_array_equal(mine, called)
    np.testing.assert_array_equal(mine, each)
    is_plain, read = metrics["read"]
    assert is_plain
    np.testing.assert_array_equal(read, mine)
    kinds, choices = zip(*metrics["ways"], strict=True)
    there = shutil.which("g++") is not None
    assert kinds[:2] == ("numpy_function", "compiled" if there else "numpy_function")
    shared = "sharded" if engine == "embedded" else "replicated: the ranks share no mem"
    assert choices[0].startswith(shared)
    assert choices[2] == "replicated: shard=False"


# JAX ---------------------------------------------------------------------------------


def jax_loop() -> None:
    import jax
    import jax.numpy as jnp

    from skate.train import jax as together

    context = train.context()
    tree = {"a": jnp.full(2, 1.0 + context.rank), "b": [jnp.ones(3, jnp.int32)]}
    sums = together.allreduce(tree, op="sum")
    function = together.value_and_grad(lambda w, x: jnp.mean((w * x) ** 2))
    x = jnp.arange(4.0)[context.rank :: 2]
    w = jnp.array(2.0)
    found = [function(w, x)]
    compiled = jax.jit(function)
    found += [compiled(w, x) for _ in range(2)]
    first = together.broadcast({"w": jnp.full(2, context.rank + 5.0)})
    context.report(
        {
            "sums": [sums["a"].tolist(), sums["b"][0].tolist()],
            "found": [(float(value), float(gradient)) for value, gradient in found],
            "first": first["w"].tolist(),
        }
    )


def test_jax_trees_are_reduced_in_jit_and_out() -> None:
    needs("jax")
    metrics = train.run(jax_loop, 2).metrics
    assert metrics["sums"] == [[3.0, 3.0], [2, 2, 2]]
    # Of all four rows: mean of (2 x)^2, and of its derivative 2 * 2 * x^2.
    assert metrics["found"] == [(14.0, 14.0)] * 3
    assert metrics["first"] == [5.0, 5.0]
