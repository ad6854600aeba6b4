"""A supervisor that is stopped, and does not go on."""

from __future__ import annotations

import os
import signal
import threading

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
