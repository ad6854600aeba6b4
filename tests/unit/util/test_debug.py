from __future__ import annotations

import pytest

from skate.util import debug, log_once


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("disabled", "periodic", "last_logged"):
        monkeypatch.setattr(debug._Settings, name, getattr(debug._Settings, name))
    debug.reset_log_once()


def test_log_once_is_true_once_for_each_key() -> None:
    assert [log_once("a"), log_once("a"), log_once("b")] == [True, False, True]
    debug.reset_log_once("a")
    assert [log_once("a"), log_once("b")] == [True, False]


def test_log_once_can_be_turned_off() -> None:
    debug.disable_log_once_globally()
    assert not log_once("a")


def test_log_once_can_be_true_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    debug.enable_periodic_logging()
    now = 1000.0
    monkeypatch.setattr(debug.time, "monotonic", lambda: now)
    assert [log_once("a"), log_once("a")] == [True, False]
    now += 61
    log_once("a")  # as in Ray, this one only notices that the time is up
    assert log_once("a")
