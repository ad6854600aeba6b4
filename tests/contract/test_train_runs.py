"""``train.run``: data and randomness, checkpoints, evaluation, faults, a real task."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from polling import wait_until

import skate
from skate import train
from skate.exceptions import CheckpointError, CollectiveTimeoutError, RankDiedError

pytestmark = pytest.mark.usefixtures("engine")


# data and randomness -----------------------------------------------------------------


def share_rows() -> None:
    context = train.context()
    rows = np.arange(11)
    mine = {
        "plain": context.shard(rows).tolist(),
        "dict": context.shard({"x": rows * 2, "y": rows})["x"].tolist(),
        "list": list(context.shard([f"row {i}" for i in range(11)])),
        "epochs": [
            context.shard(rows, epoch=e, shuffle=True).tolist() for e in (0, 1, 0)
        ],
        "seed": context.seed,
        "draws": [float(context.rng.random()), float(np.random.random())],  # noqa: NPY002
    }
    gathered = np.zeros((context.world_size, 2))
    gathered[context.rank] = mine["draws"]
    rows_of_all = np.zeros((context.world_size, 5), np.int64)
    rows_of_all[context.rank] = mine["epochs"][1]
    context.report(
        mine
        | {
            "all draws": context.allreduce(gathered).tolist(),
            "all rows": context.allreduce(rows_of_all).ravel().tolist(),
        }
    )


def test_each_rank_has_rows_and_random_numbers_of_its_own() -> None:
    first, again, other = (
        train.run(share_rows, 2, seed=seed).metrics for seed in (0, 0, 1)
    )
    assert first["plain"] == [0, 2, 4, 6, 8]
    assert first["dict"] == [0, 4, 8, 12, 16]
    assert first["list"][1] == "row 2"
    assert first["epochs"][0] == first["epochs"][2] != first["epochs"][1]
    assert len(set(first["all rows"])) == 10  # no row twice
    draws = np.array(first["all draws"])[:, 0]
    assert draws[0] != draws[1]
    assert first["epochs"] == again["epochs"] != other["epochs"]
    assert first["draws"][0] == again["draws"][0] != other["draws"][0]
    assert first["seed"] == again["seed"] != other["seed"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros(2), "2 rows for 3 ranks"),
        ((np.zeros(9), np.zeros(8)), r"differ in length: \[8, 9\]"),
    ],
)
def test_a_data_set_that_does_not_fit_is_refused(rows: Any, message: str) -> None:
    def loop() -> None:
        train.context().shard(rows)

    with pytest.raises(ValueError, match=message):
        train.run(loop, 3)


def test_a_loop_that_never_reports_is_an_error() -> None:
    with pytest.raises(ValueError, match="returned without a report"):
        train.run(lambda: None, 1)


# checkpoints -------------------------------------------------------------------------


def wander(config: dict[str, Any]) -> None:
    """SGD with noise from every random state; ends after some epochs."""
    context = train.context()
    state = context.resume(like=config.get("like"))
    weights, velocity, epoch = np.zeros(3), np.zeros(3), 0
    if state is not None:
        weights, velocity, epoch = (
            np.array(state["weights"]),
            np.array(state["velocity"]),
            state["epoch"],
        )
        context.set_random_state(state["random"])
    data = np.random.default_rng(5).normal(size=(12, 3))
    for epoch in range(epoch, config["epochs"]):  # noqa: B020
        for row in context.shard(data, epoch=epoch, shuffle=True):
            noise = context.rng.normal(size=3)
            if context.world_size == 1 or config["global"]:
                noise = noise + random.random() + np.random.random(3)  # noqa: NPY002
            gradient = context.allreduce(weights - row + 0.1 * noise, op="mean")
            velocity = 0.9 * velocity + gradient
            weights = weights - 0.05 * velocity
        context.report(
            {"epoch": epoch, "weights": weights.tolist()},
            {
                "weights": weights,
                "velocity": velocity,
                "epoch": epoch + 1,
                "random": context.random_state(),
            },
        )


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(
    tmp_path: Path, engine: str
) -> None:
    # On inline, the ranks share one process's global random state.
    config = {"epochs": 4, "global": engine != "inline"}
    whole = train.run(wander, 2, config=config, seed=3)
    train.run(wander, 2, config=config | {"epochs": 2}, seed=3, checkpoint_dir=tmp_path)
    rest = train.run(
        wander, 2, config=config, seed=3, checkpoint_dir=tmp_path, resume=True
    )
    assert [m["epoch"] for m in rest.history] == [2, 3]
    assert rest.metrics["weights"] == whole.metrics["weights"]
    # From one checkpoint to the next, the number of ranks may change.
    wider = train.run(
        wander,
        3,
        config=config | {"epochs": 5},
        checkpoint_dir=tmp_path,
        resume=True,
    )
    assert [m["epoch"] for m in wider.history] == [4]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    config = {"epochs": 1, "global": False}
    path = train.run(wander, 1, config=config, checkpoint_dir=tmp_path).path
    assert path is not None
    like = {"weights": np.zeros(4), "velocity": np.zeros(3), "epoch": 0}
    with pytest.raises(
        CheckpointError, match=r"\['weights'\] is float64 \(3,\), expected float64 \(4"
    ):
        train.run(
            wander,
            1,
            config=config | {"epochs": 2, "like": like},
            checkpoint_dir=tmp_path,
            resume=True,
        )
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="is truncated"):
        train.run(wander, 1, config=config, checkpoint_dir=tmp_path, resume=True)


LOSSES = [3.0, 1.0, 2.0, 2.5, 2.0, 4.0, 9.0]


def lose() -> None:
    context = train.context()
    for i, loss in enumerate(LOSSES):
        context.report(
            {"loss": loss}, {"i": i}, samples=100, done=(i + 1) / len(LOSSES)
        )
        if context.should_stop():
            break


def test_the_best_checkpoint_is_kept_and_the_run_ends_early(tmp_path: Path) -> None:
    result = train.run(
        lose,
        2,
        checkpoint_dir=tmp_path,
        metric="loss",
        patience=3,
        keep_checkpoints=2,
    )
    assert result.best == {"loss": 1.0}
    assert result.best_checkpoint == {"i": 1}
    assert result.best_path is not None
    assert train.load_checkpoint(result.best_path) == {"i": 1}
    assert result.stopped_early
    assert train.load_checkpoint(tmp_path) == result.checkpoint
    assert len(list(tmp_path.glob("checkpoint-*.pkl"))) <= 2
    assert result.samples_per_s is not None
    assert result.samples_per_s > 0
    # A resumed run knows what the best was.
    again = train.run(
        lambda: train.context().report({"loss": 1.5}, {"i": 9}),
        1,
        checkpoint_dir=tmp_path,
        metric="loss",
        resume=True,
    )
    assert again.best_checkpoint == {"i": 1}
    assert again.best_path == result.best_path
    assert again.checkpoint == {"i": 9}


def test_checkpoints_are_evaluated_while_training_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = train.run(
        lose,
        1,
        evaluate=lambda checkpoint: {"accuracy": checkpoint["i"] / 10},
        metric="accuracy",
        goal="max",
        progress=True,
    )
    last = len(LOSSES) - 1
    assert result.evaluations[-1] == (last, {"accuracy": last / 10})
    assert result.best == {"accuracy": last / 10}
    assert [m["loss"] for m in result.history] == LOSSES
    picture = result.plot(tmp_path / "curves.png")
    assert picture.read_bytes()[1:4] == b"PNG"


def test_a_failing_evaluation_does_not_start_training_again() -> None:
    with pytest.raises(KeyError, match="no such"):
        train.run(lose, 1, evaluate=lambda checkpoint: {}["no such"], max_failures=3)


# faults ------------------------------------------------------------------------------


def stumble(fault: str) -> None:
    context = train.context()
    context.barrier()
    if context.rank == 1:
        if fault == "raise":
            raise KeyError("rank 1 stumbled")
        if fault == "die":
            os._exit(1)
        if fault == "stop":  # all of its threads, so it cannot say where it hangs
            os.kill(os.getpid(), signal.SIGSTOP)
        threading.Event().wait()  # for ever
    context.allreduce(np.zeros(3))


def test_an_error_names_its_rank_and_traceback() -> None:
    with pytest.raises(KeyError, match="rank 1 stumbled") as caught:
        train.run(stumble, 3, config="raise")
    error: Any = caught.value
    assert error.remote_traceback.startswith("rank 1 of 3:\n")
    assert 'raise KeyError("rank 1 stumbled")' in error.remote_traceback


@pytest.mark.differs(inline="ends the program: ranks have no process of their own")
def test_a_killed_rank_is_an_error_that_names_it() -> None:
    with pytest.raises(RankDiedError, match="rank 1 of 3 died") as caught:
        train.run(stumble, 3, config="die")
    assert caught.value.rank == 1


@pytest.mark.differs(inline="hangs the program: ranks take turns in one process")
def test_a_rank_that_hangs_is_an_error_that_says_where() -> None:
    with pytest.raises(CollectiveTimeoutError, match="rank 1 of 2 hangs") as caught:
        train.run(stumble, 2, config="hang", deadline=0.5)
    assert caught.value.missing_ranks == (1,)
    assert "threading.Event().wait()  # for ever" in str(caught.value)


@pytest.mark.differs(inline="stops the program: ranks have no process of their own")
def test_a_rank_whose_process_is_stopped_is_told_by_the_others() -> None:
    with pytest.raises(CollectiveTimeoutError) as caught:
        train.run(stumble, 2, config="stop", deadline=0.5)
    assert caught.value.missing_ranks == (1,)


@pytest.mark.differs(inline="ends the program: ranks have no process of their own")
def test_killed_ranks_are_started_again_from_the_newest_checkpoint() -> None:
    def loop() -> None:
        context = train.context()
        for i in range(context.checkpoint or 0, 4):
            context.report({"i": i, "from": context.checkpoint}, checkpoint=i + 1)
            context.barrier()
            if i == 1 and context.rank == 1 and context.checkpoint is None:
                os._exit(1)

    result = train.run(loop, 2, max_failures=1)
    assert result.failures == 1
    assert result.metrics["i"] == 3
    assert result.metrics["from"] >= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_workers": 3}, "min_workers=3"),
        ({"max_failures": -1}, "max_failures=-1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints=0"),
        ({"deadline": 0}, "deadline=0"),
        ({"goal": "most"}, "goal='most'"),
        ({"patience": 3}, "patience=3 needs a metric"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train.run(lose, 2, **options)


# a real task -------------------------------------------------------------------------


def digits() -> tuple[Any, Any]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images / 16.0, labels


def softmax_gradient(weights: Any, x: Any, y: Any) -> Any:
    scores = x @ weights["w"] + weights["b"]  # (B, 10)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances = scores / scores.sum(axis=1, keepdims=True)
    chances[np.arange(len(y)), y] -= 1
    return {"w": x.T @ chances / len(y), "b": chances.mean(axis=0)}


def accuracy(weights: Any, x: Any, y: Any) -> float:
    return float(((x @ weights["w"] + weights["b"]).argmax(axis=1) == y).mean())


def zeros() -> dict[str, Any]:
    return {"w": np.zeros((64, 10)), "b": np.zeros(10)}


def learn_digits(server: train.ParameterServer | None) -> None:
    context = train.context()
    x, y = digits()
    held_out = x[1400:], y[1400:]
    weights = zeros()
    worker = server.join() if server is not None else None
    if worker is not None:
        weights = worker.pull()
    for epoch in range(3):
        mine, labels = context.shard((x[:1400], y[:1400]), epoch=epoch, shuffle=True)
        for start in range(0, len(mine), 20):
            at = slice(start, start + 20)
            gradient = softmax_gradient(weights, mine[at], labels[at])
            if worker is not None:
                weights = worker.step(gradient)
                continue
            for name in weights:
                mean = context.allreduce(gradient[name], op="mean")
                weights[name] = weights[name] - 0.5 * mean
    context.report({"accuracy": accuracy(weights, *held_out)})


@pytest.mark.parametrize("way", ["allreduce", "parameter server", "asynchronous"])
def test_digits_are_learnt_by_many_as_well_as_by_one(way: str) -> None:
    pytest.importorskip("sklearn")
    x, y = digits()
    weights = zeros()
    for epoch in range(3):
        order = np.random.default_rng((0, epoch)).permutation(1400)
        for start in range(0, 1400, 40):
            rows = order[start : start + 40]
            gradient = softmax_gradient(weights, x[rows], y[rows])
            weights = {k: weights[k] - 0.5 * gradient[k] for k in weights}
    alone = accuracy(weights, x[1400:], y[1400:])
    assert alone > 0.8
    server = None
    if way != "allreduce":
        server = train.ParameterServer(
            zeros(),
            num_shards=2,
            # Asynchronously, each gradient counts by itself: half the rate for each.
            optimizer=train.SGD(0.5 if way == "parameter server" else 0.25),
            mode="sync" if way == "parameter server" else "stale",
        )
    result = train.run(learn_digits, 2, config=server)
    within = 1e-9 if way != "asynchronous" else 0.03
    assert result.metrics["accuracy"] == pytest.approx(alone, abs=within)
    if server is not None:
        server.close()


def test_the_session_is_free_afterwards() -> None:
    train.run(lose, 2)
    # The CPUs come back when the ranks' processes are seen to have ended.
    everything = skate.cluster_resources()
    assert wait_until(lambda: skate.available_resources() == everything)
