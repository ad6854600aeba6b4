from __future__ import annotations

import pytest

from skate.train.progress import Progress


def test_the_time_left_is_measured_from_where_a_resumed_run_began(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress(now=0.0) as progress:
        progress.show({"loss": 0.5}, done=0.5, samples_per_s=None, now=100.0)
        assert progress.time_left(0.5, now=100.0) is None
        assert progress.time_left(0.6, now=110.0) == pytest.approx(40.0)
        line = progress.line({"loss": 0.25, "name": "x"}, 0.6, 1234.0, now=110.0)
        assert line == " 60%  loss 0.25  1,234 samples/s  40 s left"
        progress.show({"loss": 0.1}, done=1.0, samples_per_s=None, now=150.0)
    assert capsys.readouterr().out.endswith("100%  loss 0.1  0 s left\n")
