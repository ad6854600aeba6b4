"""The projection of the training benchmark, where its answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.training_picture import WORKERS, draw, measured, projected, projection


def answer(median: float) -> dict[str, float]:
    return {"median": median, "p5": 0.9 * median, "p95": 1.1 * median}


REPORT: dict[str, Any] = {
    "cases": {
        "comm": {"training_bound": answer(20), "training_ddp": answer(10)},
        "comm, allreduce": {"training_skate": answer(18)},
    }
}


def test_two_workers_are_projected_as_they_were_measured() -> None:
    found = measured(REPORT, "comm")
    rates = projection(found, "comm")
    assert set(rates) == {"skate, allreduce", "DDP over gloo"}
    assert rates["skate, allreduce"][WORKERS.index(2)] == pytest.approx(18)
    assert rates["DDP over gloo"][WORKERS.index(2)] == pytest.approx(10)
    assert rates["DDP over gloo"][WORKERS.index(1)] == pytest.approx(10)  # alone


def test_many_workers_pay_for_the_network_between_machines() -> None:
    # 178 MB to and fro at 25 Gbit/s take 114 ms, half of that between two machines.
    assert projected(0.2, 0.0, 4, 2) == pytest.approx(8 / 0.257, rel=0.01)
    assert projected(0.2, 0.0, 64, 2) == pytest.approx(128 / 0.314, rel=0.02)


def test_a_picture_is_drawn_of_what_was_measured_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "training.png"
    draw(REPORT, path)
    assert path.read_bytes()[1:4] == b"PNG"
    draw({"cases": {}}, path)
    assert not path.exists()
