"""Packets of any size between processes, and what happens when something is short."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from skate.engine.embedded import wire
from skate.engine.embedded.output import _MAX_TEXT, _encode_name, _parts

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = wire.socket_pair()
    with ours, theirs:
        yield ours, theirs


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open no further file meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_fd = os.dup(0)
    os.close(next_fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_fd, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 212_992, 3_000_000])
def test_a_packet_of_any_size_arrives_whole_with_its_descriptors(
    pair: Pair, size: int
) -> None:
    ours, theirs = pair
    data = os.urandom(size)
    read, write = os.pipe()
    wire.send(ours, data, [write])
    os.close(write)
    received, fds = wire.receive(theirs)
    assert received == data
    (fd,) = fds
    os.write(fd, b"same")
    assert os.read(read, 10) == b"same"
    os.close(fd)
    os.close(read)


@pytest.mark.parametrize("data", [b"G", b"G and more"])
def test_a_packet_that_looks_like_a_boxed_one_is_boxed(pair: Pair, data: bytes) -> None:
    wire.send(pair[0], data)
    assert wire.receive(pair[1]) == (data, [])


def test_a_packet_that_cannot_be_taken_now_is_still_there(pair: Pair) -> None:
    data = os.urandom(100_000)
    wire.send(pair[0], data)
    with no_descriptors(), pytest.raises(wire.OutOfDescriptorsError):
        wire.receive(pair[1])
    assert wire.receive(pair[1]) == (data, [])


def test_without_room_a_packet_is_refused_or_waited_for(pair: Pair) -> None:
    sent = 0

    def send_all() -> None:
        nonlocal sent
        while True:
            wire.send(pair[0], b"x" * 1000, block=False)
            sent += 1

    with pytest.raises(BlockingIOError):
        send_all()
    waits = threading.Thread(target=wire.send, args=(pair[0], b"last"))
    waits.start()
    for _ in range(sent):
        assert wire.receive(pair[1])[0] == b"x" * 1000
    assert wire.receive(pair[1])[0] == b"last"
    waits.join()


def test_nothing_to_read_and_the_other_side_gone_are_told_apart(pair: Pair) -> None:
    ours, theirs = pair
    with pytest.raises(BlockingIOError):
        wire.receive(ours, block=False)
    wire.send(ours, b"unread")
    wire.send(theirs, b"last words")
    theirs.close()
    assert wire.receive(ours)[0] == b"last words"
    assert wire.receive(ours) == (b"", [])


def test_an_outbox_waits_for_nobody_and_keeps_the_order(pair: Pair) -> None:
    ours, theirs = pair
    outbox = wire.Outbox()
    read, write = os.pipe()
    for number in range(2000):
        data = b"%d " % number + b"x" * (100_000 if number % 100 == 0 else 1000)
        outbox.send(ours, data, [write] if number == 1999 else [])
    os.close(write)  # the outbox has one of its own
    assert len(outbox) == 1
    got = []
    fds: list[int] = []
    while len(got) < 2000:
        outbox.flush()
        data, fds = wire.receive(theirs)
        got.append(int(data.split()[0]))
    assert got == list(range(2000))
    assert not outbox
    os.close(read)
    os.close(fds[0])


def test_what_an_outbox_has_taken_needs_no_further_descriptor(pair: Pair) -> None:
    ours, theirs = pair
    outbox = wire.Outbox()
    long = b"x" * 200_000
    kept = 0
    while not outbox:
        outbox.send(ours, b"short")
        kept += 1
    outbox.send(ours, long)
    with no_descriptors():
        # Whom this is for is told at once, or never.
        with pytest.raises(OSError, match="Too many open files"):
            outbox.send(ours, long)
        for _ in range(kept):
            outbox.flush()
            assert wire.receive(theirs, block=False)[0] == b"short"
        assert outbox.flush() == 0
    assert wire.receive(theirs, block=False)[0] == long


def test_what_is_kept_for_the_dead_is_forgotten(pair: Pair) -> None:
    ours, theirs = pair
    outbox = wire.Outbox()
    while not outbox:
        outbox.send(ours, b"x" * 1000)
    theirs.close()
    assert outbox.flush() == 0
    assert not outbox


def test_output_is_cut_into_packets_between_lines() -> None:
    lines = [b"%d" % number + b"x" * (number % 300) for number in range(2000)]
    text = b"\n".join(lines) + b"\n"
    parts = list(_parts(text))
    assert b"".join(parts) == text
    assert all(len(part) <= _MAX_TEXT and part.endswith(b"\n") for part in parts)


def test_a_long_line_is_cut_between_characters() -> None:
    text = ("日本語" * 30_000).encode()
    parts = list(_parts(text))
    assert b"".join(parts) == text
    assert all(part.decode() for part in parts)


@pytest.mark.parametrize("name", ["日" * 1000, "a\nb\x03c", "\ud800", "x" * 100_000])
def test_any_name_of_a_task_fits_a_mark(name: str) -> None:
    mark = _encode_name(name)
    assert len(mark) <= 1024
    assert mark.decode()
    assert not {0x03, 0x0A} & set(mark)
