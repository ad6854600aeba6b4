"""What workers print, as the supervisor reads it from their pipes and passes it on."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from skate.engine.embedded import wire
from skate.engine.embedded.output import Collector, _lines


class Session:
    """A collector with its workers' ends, and the driver's."""

    def __init__(self) -> None:
        self.supervisor, self.driver = wire.socket_pair()
        self.driver.setblocking(False)
        self.selector = selectors.DefaultSelector()
        self.collector = Collector(self.supervisor, self.selector)
        self.workers: list[tuple[list[int], list[int]]] = []

    def add_workers(self, count: int) -> None:
        self.workers += [self.collector.open() for _ in range(count)]

    def turn(self) -> None:
        for key, _ in self.selector.select(0):
            key.data()

    def packets(self) -> Iterator[bytes]:
        while True:
            try:
                yield self.driver.recv(1 << 17)
            except BlockingIOError:
                return

    def received(self) -> int:
        return sum(map(len, self.packets()))

    def lines_of(self, *written: bytes) -> list[str]:
        """What the driver prints of a worker that writes so."""
        _, (writable, _) = self.workers[0]
        found: list[str] = []
        for text in written:
            for at in range(0, len(text), 1 << 12):
                os.write(writable, text[at : at + (1 << 12)])
                self.turn()
                for packet in self.packets():
                    found += [line.text for line in _lines(packet)]
        return found

    def seconds_of_a_line(self) -> float:
        _, (writable, _) = self.workers[0]
        best = 1.0
        for _ in range(50):
            os.write(writable, b"hello\n")
            start = time.perf_counter()
            self.turn()
            best = min(best, time.perf_counter() - start)
            assert self.received()
        return best

    def close(self) -> None:
        for kept, given in self.workers:
            for fd in given:
                os.close(fd)
            self.collector.close(kept)
        self.selector.close()
        self.supervisor.close()
        self.driver.close()


@pytest.fixture
def session() -> Iterator[Session]:
    session = Session()
    yield session
    session.close()


def test_a_line_costs_the_same_however_many_workers_there_are(session: Session) -> None:
    session.add_workers(5)
    few = session.seconds_of_a_line()
    session.add_workers(200)
    assert session.seconds_of_a_line() < 2 * few


def test_an_end_of_a_line_that_comes_in_two_is_one(session: Session) -> None:
    session.add_workers(1)
    assert session.lines_of(b"a\r", b"\n", b"b\r", b"c\n") == ["a", "b", "c"]
    long = b"x" * ((48 << 10) - 1) + b"\r\n" + b"y" * (40 << 10) + b"\n"
    assert session.lines_of(long) == ["x" * ((48 << 10) - 1), "y" * (40 << 10)]


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("before", range(4))
def test_a_long_line_is_cut_between_characters(
    session: Session, size: int, before: int
) -> None:
    session.add_workers(1)
    text = "a" * before + {2: "é", 3: "€", 4: "🙂"}[size] * (200_000 // size)
    assert "".join(session.lines_of(text.encode() + b"\n")) == text


def test_a_long_line_is_not_cut_in_the_name_of_a_task(session: Session) -> None:
    session.add_workers(1)
    for size in range((64 << 10) - 8, 64 << 10):
        lines = session.lines_of(b"x" * size + b"\x1e\x02a task\x03y" * 2 + b"\n")
        assert "".join(lines) == "x" * size + "yy"


def test_workers_wait_while_the_driver_does_not_read_and_go_on_when_it_does(
    session: Session,
) -> None:
    session.add_workers(2)
    _, (writable, _) = session.workers[0]
    os.set_blocking(writable, False)
    line = b"x" * 4095 + b"\n"
    written, idle = 0, 0
    while idle < 3:  # full, and the supervisor does not read any more
        try:
            written += os.write(writable, line)
            idle = 0
        except BlockingIOError:
            idle += 1
        session.turn()
        assert written < 64 << 20
    received = 0
    while more := session.received():
        received += more
        session.turn()
        session.turn()
    assert received >= written
    assert os.write(writable, b"again\n")
    session.turn()
    assert session.received()
