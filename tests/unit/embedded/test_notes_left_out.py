from __future__ import annotations

import pytest

pytest.importorskip("skate._core", reason="it is about the embedded engine")

from skate.engine.embedded.notes import Notes
from skate.engine.embedded.processes import Proc


def test_a_note_that_was_left_out_says_so_and_how_many_were() -> None:
    notes = Notes()
    numbers = [Proc(2, epoch).packed for epoch in range(1, 1004)]
    for number in numbers:
        notes.keep(number, f"note {number}")
    assert notes.get(numbers[-1]) == f"note {numbers[-1]}"
    assert "3 so far" in notes.get(numbers[0])
    assert notes.get(0) == notes.get(12) == ""  # no note, and an error's number


def test_a_long_text_is_shortened_once_and_may_be_kept_again() -> None:
    notes = Notes()
    long = "x" * (3 << 20)
    number = notes.number_of(long)
    for _ in range(20):  # more than is kept together
        assert notes.number_of(long) == number
    assert "characters left out" in notes.get(number)
    for i in range(20):
        notes.number_of(f"{i}{long}")
    assert notes.number_of(long) != number
