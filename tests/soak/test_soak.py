"""The soak, for as long as a test may take; ``make soak`` runs it for minutes."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("skate._core", reason="the soak kills processes of the core's")

from soak import soak


@pytest.mark.timeout(300)
def test_random_graphs_survive_random_kills() -> None:
    seed = random.randrange(10_000)
    report = soak(20.0, seed)
    assert report.graphs > 0
    assert report.sessions > 0
