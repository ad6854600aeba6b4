"""A supervisor that is stopped, and does not go on."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
from processes import children

import skate

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from skate.engine.embedded import driver


def test_shutdown_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_END_TIMEOUT_S", 0.5)
    skate.init("embedded", num_cpus=1)
    (supervisor,) = children(os.getpid())
    os.kill(supervisor, signal.SIGSTOP)
    ending = threading.Thread(target=skate.shutdown, daemon=True)
    ending.start()
    ending.join(10)
    try:
        assert not ending.is_alive()
    finally:
        if ending.is_alive():
            os.kill(supervisor, signal.SIGKILL)
            ending.join()
    assert supervisor not in children(os.getpid())


@skate.remote
class Maker:
    def make(self) -> list[np.ndarray]:
        return [np.full(200_000, i) for i in range(2)]


def test_a_get_that_needs_it_waits_and_leaves_other_threads_alone() -> None:
    """The value lies in memory that has to be asked for; who ends the stop is one of
    those threads."""
    with skate.init("embedded", num_cpus=1):
        (supervisor,) = children(os.getpid())
        ref = Maker.remote().make.remote()
        skate.wait([ref], timeout=30)
        os.kill(supervisor, signal.SIGSTOP)

        def go_on() -> None:
            for _ in range(100):  # of what other threads may do meanwhile
                threading.Event().wait(0.005)
            os.kill(supervisor, signal.SIGCONT)

        thread = threading.Thread(target=go_on)
        thread.start()
        one, other = skate.get(ref)
        thread.join()
        assert (one == 0).all()
        assert (other == 1).all()
        assert skate.get(skate.put(2)) == 2
