from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skate.exceptions import CheckpointError
from skate.train import checkpoint as checkpoints
from skate.train import load_checkpoint
from skate.train.checkpoint import Offer, Saver, save
from skate.train.run import fitting

STATE = {"model": {"w": np.arange(6.0).reshape(2, 3)}, "epoch": 3}


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, STATE, step=7, metrics={"loss": np.float32(0.5), "x": "y"})
    found = load_checkpoint(tmp_path)
    np.testing.assert_array_equal(found["model"]["w"], STATE["model"]["w"])
    trailer = checkpoints.describe(path)
    assert (trailer["step"], trailer["metrics"]) == (7, {"loss": 0.5})
    assert not list(tmp_path.glob("*.partial"))
    assert load_checkpoint(tmp_path / "other") is None


@pytest.mark.parametrize("cut", [1, 20, 300])
def test_a_truncated_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = save(tmp_path, STATE)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CheckpointError, match="is truncated"):
        load_checkpoint(tmp_path)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = save(tmp_path, STATE)
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="its SHA-256 is"):
        load_checkpoint(tmp_path)


def test_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "FORMAT", 9)
        save(tmp_path, STATE)
    with pytest.raises(CheckpointError, match="has format 9; this version of skate"):
        load_checkpoint(tmp_path)


def test_another_model_is_refused_with_what_differs(tmp_path: Path) -> None:
    save(tmp_path, STATE)
    like = {"model": {"w": np.zeros((3, 3), np.float32), "b": np.zeros(3)}, "epoch": 0}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path, like=like)
    message = str(caught.value)
    assert "checkpoint['model']['b'] is missing" in message
    assert (
        "checkpoint['model']['w'] is float64 (2, 3), expected float32 (3, 3)" in message
    )
    load_checkpoint(tmp_path, like=STATE)


def test_older_ones_are_kept_by_number_and_named_when_needed(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, step=step, keep=3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "checkpoint-00000003.pkl",
        "checkpoint-00000004.pkl",
        "checkpoint-00000005.pkl",
        "checkpoint.pkl",
    ]
    assert load_checkpoint(tmp_path / "checkpoint-00000004.pkl") == 4
    newest = tmp_path / "checkpoint.pkl"
    newest.unlink()  # it shares its bytes with the numbered one
    newest.write_bytes(b"gone")
    with pytest.raises(CheckpointError, match=r"Beside it: checkpoint-00000003\.pkl"):
        load_checkpoint(tmp_path)


def test_a_saver_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    saver = Saver(tmp_path)
    try:
        saver.offer(Offer("first", 1, {}), now=0.0)
        saver.offer(Offer("best", 2, {}, best=True), now=0.1)
        saver.offer(Offer("third", 3, {}), now=0.2)
        saver.offer(Offer("last", 4, {}), now=0.3)
        saver.flush()
        assert load_checkpoint(tmp_path) == "last"
        assert saver.best_path is not None
        assert load_checkpoint(saver.best_path) == "best"
    finally:
        saver.close()


def test_a_new_run_replaces_an_old_one_with_its_first_checkpoint(
    tmp_path: Path,
) -> None:
    for step in (8, 9):
        save(tmp_path, step, step=step, keep=3)
    saver = Saver(tmp_path, keep=3, anew=True)
    try:
        assert load_checkpoint(tmp_path) == 9
        saver.offer(Offer("new", 1, {}), now=0.0)
        saver.flush()
    finally:
        saver.close()
    assert load_checkpoint(tmp_path) == "new"
    names = [path.name for path in checkpoints.numbered(tmp_path)]
    assert names == ["checkpoint-00000001.pkl"]


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    saver = Saver(tmp_path)
    try:
        saver.offer(Offer(lambda: None, 1, {}), now=0.0)
        with pytest.raises(Exception, match=r"[Pp]ickle"):
            saver.flush()
    finally:
        saver.close()


@pytest.mark.parametrize(
    ("needs", "there", "expected"),
    [
        ({"num_cpus": 2}, {"CPU": 8.0}, 4),
        ({"num_cpus": 2}, {"CPU": 5.0}, 2),
        ({"num_gpus": 1}, {"CPU": 8.0}, 2),
        ({"num_cpus": 1, "resources": {"token": 2}}, {"CPU": 8.0, "token": 6.0}, 3),
        ({}, {"CPU": 1.0}, 4),
    ],
)
def test_after_a_failure_as_many_ranks_start_as_fit(
    needs: dict[str, Any], there: dict[str, float], expected: int
) -> None:
    assert fitting(4, 2, needs, there) == expected
    assert fitting(4, None, needs, there) == 4


def test_the_trailer_is_json(tmp_path: Path) -> None:
    data = save(tmp_path, STATE).read_bytes()
    line = data[: -len(checkpoints.MAGIC) - 4]
    assert json.loads(line[line.rindex(b'{"format"') :])["format"] == 1
