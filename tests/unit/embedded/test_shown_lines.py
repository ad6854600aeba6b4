"""Which of the workers' lines are shown: the same one from many, and too many."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from skate.engine.embedded.output import STDOUT, Line, Shown


def line(text: str, pid: int = 1) -> Line:
    return Line(STDOUT, pid, "f", text)


def texts(lines: list[Line]) -> list[str]:
    return [shown.text for shown in lines]


def test_one_worker_may_repeat_itself() -> None:
    shown = Shown(window_s=5.0, lines_per_second=100)
    assert len(shown.take([line("ready"), line("ready")], now=0.0)) == 2


def test_the_same_line_of_many_workers_is_shown_once_and_then_counted() -> None:
    shown = Shown(window_s=5.0, lines_per_second=100)
    first = shown.take([line(f"loaded in {pid} s", pid) for pid in range(4)], now=0.0)
    assert texts(first) == ["loaded in 0 s"]
    assert shown.pause(now=1.0) == pytest.approx(4.0)
    later = shown.take([], now=5.0)
    assert texts(later) == ["loaded in 3 s [repeated 3x by other workers]"]
    assert shown.pause(now=5.0) is None


def test_a_line_that_came_twice_is_shown_twice() -> None:
    shown = Shown(window_s=5.0, lines_per_second=100)
    shown.take([line("a warning", 1), line("a warning", 2)], now=0.0)
    assert texts(shown.flush()) == ["a warning"]


def test_numbers_alone_are_not_taken_for_repetition() -> None:
    shown = Shown(window_s=5.0, lines_per_second=100)
    lines = [line("12.5", 1), line("13.5", 2)]
    assert shown.take(lines, now=0.0) == lines


def test_without_a_window_nothing_is_held_back() -> None:
    shown = Shown(window_s=0.0, lines_per_second=100)
    lines = [line("same", pid) for pid in range(3)]
    assert shown.take(lines, now=0.0) == lines
    assert shown.flush() == []


def test_what_exceeds_the_rate_is_counted() -> None:
    shown = Shown(window_s=5.0, lines_per_second=3)
    many = [line(f"step {i}") for i in range(10)]
    assert len(shown.take(many, now=0.0)) == 3
    assert shown.pause(now=0.0) == 1.0
    (note,) = shown.take([], now=1.0)
    assert note.text.startswith("7 lines were not shown")
    assert len(shown.take(many[:2], now=1.5)) == 2


def test_of_less_than_a_line_a_second_some_are_shown() -> None:
    shown = Shown(window_s=0.0, lines_per_second=0.5)
    took = [shown.take([line(f"at {now}")], now=float(now)) for now in range(100, 105)]
    mine = [texts([one for one in lines if one.name == "f"]) for lines in took]
    assert mine == [["at 100"], [], ["at 102"], [], ["at 104"]]
    assert took[2][0].text.startswith("1 lines were not shown")


def test_a_rate_of_zero_is_no_limit() -> None:
    shown = Shown(window_s=0.0, lines_per_second=0)
    many = [line(f"step {i}") for i in range(10)]
    assert shown.take(many, now=0.0) == many


def test_a_line_among_many_others_costs_no_more_than_one_among_few() -> None:
    def cost_ns(others: int) -> int:
        """Of a packet, while so many others are recent and as many have gone."""
        shown = Shown(window_s=5.0, lines_per_second=0)
        for when, now in ("gone", 0.0), ("recent", 9.0):
            shown.take([line(f"{when} {word(i)}") for i in range(others)], now)
        costs = []
        for i in range(100):
            before = time.thread_time_ns()
            shown.take([line(f"new {word(i)}")], now=10.0)
            costs.append(time.thread_time_ns() - before)
        return min(costs)

    assert cost_ns(30_000) < 10 * cost_ns(10)


def word(number: int) -> str:
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))
