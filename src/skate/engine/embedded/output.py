"""What workers print: from their descriptors, through the supervisor, to the driver.

A worker's standard output and error are pipes that the supervisor reads, so what C code
writes comes too, and what was written before a death. The supervisor cuts it into lines
and passes them on to a thread of the driver, which prints them with a prefix. Nobody
waits for a driver that does not read: the supervisor keeps some, then lets the workers
that print wait.

The name in the prefix travels in the stream itself, as a mark before the first line
that another task prints; text that is not Python's goes under the last name.
"""

from __future__ import annotations

import _thread
import contextlib
import fcntl
import functools
import io
import itertools
import os
import re
import selectors
import socket
import struct
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ... import _core
from . import variables, wire

STDOUT, STDERR = 1, 2

_MARK = re.compile(rb"\x1e\x02([^\x03\n]*)\x03")
_LINE_END = re.compile(r"\r?\n|\r")
_HEADER = struct.Struct("=cBIH")  # kind, stream, pid, length of the name
_LINES_PER_SECOND = "SKATE_LOG_LINES_PER_SECOND"
_CHUNK = 32 << 10  # of text, that is read at a time
_MAX_TEXT = 48 << 10  # bytes of text in one packet
_MAX_NAME = 1 << 10  # bytes of a task's name
_MAX_MARK = _MAX_NAME + 3
_MAX_LINE = 64 << 10  # a longer one is cut
_MAX_KEPT = 4 << 20  # bytes that wait for the driver; then workers wait
_PARTIAL_S = 0.1  # text without a line's end leaves its process after this
_WINDOW_S = 5.0  # in which lines count as repeated
_NUMBERS = re.compile(r"\d")


# In a worker --------------------------------------------------------------------------


def redirect_worker(fds: list[int], name: Callable[[], str]) -> None:
    """Point descriptors 1 and 2 at the supervisor's pipes, or at nothing.

    ``name`` says what runs on the calling thread.
    """
    if not fds:
        null = os.open(os.devnull, os.O_WRONLY)
        fds = [null, os.dup(null)]
    for fd, stream in zip(fds, (STDOUT, STDERR), strict=True):
        os.dup2(fd, stream)
        os.close(fd)
    _core.line_buffer_stdout()
    sys.stdout = sys.__stdout__ = _Text(STDOUT, name)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _Text(STDERR, name)  # type: ignore[misc]
    _texts.extend((sys.stdout, sys.stderr))


class _Text(io.TextIOWrapper):
    """Line-buffered; what has no line's end yet goes out a moment later.

    Or before the next answer of a call: then the process may be ended at any time. By
    then its task may have ended, so its name is kept with it.
    """

    mode = "w"  # as that of Python's own

    def __init__(self, fd: int, name: Callable[[], str]) -> None:
        self._name = name
        self._marked = _Marked(fd, name)
        self._partial_by = ""  # who printed what has no line's end yet
        self._timer: threading.Timer | None = None
        super().__init__(
            io.BufferedWriter(self._marked),
            encoding="utf-8",
            errors="backslashreplace",
            line_buffering=True,
        )

    def write(self, text: str, /) -> int:
        name = self._name()
        if self._partial_by not in ("", name):
            self.flush()
        count = super().write(text)
        if not text:
            return count
        if text[-1] == "\n":
            self._partial_by = ""
            return count
        self._partial_by = name
        _core.flush_before_answer(_flush_partial)
        if self._timer is None:
            self._timer = threading.Timer(_PARTIAL_S, self._on_timer)
            self._timer.daemon = True
            try:
                self._timer.start()
            except (RuntimeError, MemoryError):  # there can be no further thread
                self._on_timer()
        return count

    def _on_timer(self) -> None:
        self._timer = None
        self.flush()

    def flush_partial(self) -> None:
        if self._partial_by:
            with contextlib.suppress(OSError, ValueError):  # it may be closed
                self.flush()

    def flush(self) -> None:
        # Taken first: another thread may print more meanwhile.
        self._marked.partial_by, self._partial_by = self._partial_by, ""
        try:
            super().flush()
        finally:
            self._marked.partial_by = ""


_texts: list[_Text] = []


def _flush_partial() -> None:
    for text in _texts:
        text.flush_partial()


class _Marked(io.RawIOBase):
    """Writes a mark with the task's name before the text of another task."""

    def __init__(self, fd: int, name: Callable[[], str]) -> None:
        self._fd = fd
        self._running = name
        self._last = ""
        self.partial_by = ""  # not the calling thread: see _Text

    @property
    def name(self) -> str:
        return "<stdout>" if self._fd == STDOUT else "<stderr>"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    # Any: io's own type for it is newer than the oldest Python that skate supports.
    def write(self, data: Any, /) -> int:
        name = self.partial_by or self._running()
        whole = bytes(data)
        if name != self._last:
            self._last = name
            whole = b"\x1e\x02%s\x03" % _encode_name(name) + whole
        rest = memoryview(whole)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        return len(data)


def _encode_name(name: str) -> bytes:
    """As a mark has it: on one line, not too long, and cut at a character."""
    plain = name.translate({3: " ", 10: " ", 13: " "})[:_MAX_NAME]
    data = plain.encode(errors="replace")[:_MAX_NAME]
    return data.decode(errors="ignore").encode()


# In the supervisor --------------------------------------------------------------------


class _Source:
    """One stream of one worker."""

    def __init__(self, fd: int, stream: int) -> None:
        self.fd = fd
        self.stream = stream
        self.pid = 0
        self.name: bytes | None = None  # of what printed last
        self.other: _Source | None = None  # the same worker's other stream
        self.partial = b""
        self.ends_in_cr = False  # what was passed on last
        self.watched = False
        self.ended = False  # nobody can write to it any more


class Collector:
    """Reads the workers' pipes; passes lines on to the driver, without waiting."""

    def __init__(self, driver: socket.socket, selector: selectors.BaseSelector) -> None:
        self._driver = driver
        self._driver.setblocking(False)
        self._selector = selector
        self._sources: dict[int, _Source] = {}
        self._kept: deque[bytes] = deque()  # packets that the driver had no room for
        self._kept_bytes = 0
        self._waits_for_room = False
        self._gone = False  # the driver does not listen any more
        self._paused = False  # too much waits: no source is watched

    def open(self) -> tuple[list[int], list[int]]:
        """Pipes for a new worker: the ends to keep here, and the worker's."""
        pipes = [os.pipe()]
        try:
            pipes.append(os.pipe())
        except OSError:
            for fd in pipes[0]:
                os.close(fd)
            raise
        out, err = (
            _Source(fd, stream)
            for (fd, _), stream in zip(pipes, (STDOUT, STDERR), strict=True)
        )
        out.other, err.other = err, out
        for source in (out, err):
            os.set_blocking(source.fd, False)
            self._sources[source.fd] = source
            self._watch(source)
        return [out.fd, err.fd], [writable for _, writable in pipes]

    def name_process(self, fds: list[int], pid: int) -> None:
        for fd in fds:
            self._sources[fd].pid = pid

    def close(self, fds: list[int]) -> None:
        """The worker has ended: pass on what it had written."""
        for fd in fds:
            source = self._sources.pop(fd)
            if source.watched:
                self._selector.unregister(fd)
            # Its children may live on for a moment, and write without end.
            left = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
            while left > 0 and self._read(source):
                left -= _CHUNK
            self._cut(source, b"", last=True)
            os.close(fd)
        self._settle()

    def finish(self, timeout: float) -> None:
        """The session ends: wait a little for the driver to take what is left."""
        self.close(list(self._sources))
        deadline = time.monotonic() + timeout
        while self._kept and (left := deadline - time.monotonic()) > 0:
            self._driver.settimeout(left)
            self._flush(most=1)
        self._driver.close()

    def call_driver(self, packet: bytes, fds: list[int]) -> bool:
        """Something else for the driver's thread. False: it cannot hear it now."""
        try:
            wire.send(self._driver, packet, fds, block=False)
        except OSError:
            return False
        return True

    def _settle(self) -> None:
        """Watch all sources, unless too much waits already.

        Called for every chunk that is read, so it looks at all of them only if that
        has changed.
        """
        paused = self._kept_bytes > _MAX_KEPT and not self._gone
        if paused != self._paused:
            self._paused = paused
            for source in self._sources.values():
                self._watch(source)

    def _watch(self, source: _Source) -> None:
        """Or do not, as things are now."""
        wanted = not (self._paused or source.ended)
        if wanted == source.watched:
            return
        source.watched = wanted
        if wanted:
            reader = functools.partial(self._on_readable, source)
            self._selector.register(source.fd, selectors.EVENT_READ, reader)
        else:
            self._selector.unregister(source.fd)

    def _on_readable(self, source: _Source) -> None:
        self._read(source)
        self._watch(source)
        self._settle()

    def _read(self, source: _Source) -> bool:
        try:
            data = os.read(source.fd, _CHUNK)
        except BlockingIOError:
            return False
        source.ended = not data
        if data:
            self._cut(source, data)
        return bool(data)

    def _cut(self, source: _Source, data: bytes, last: bool = False) -> None:
        """Pass on the whole lines, under the names of those who printed them."""
        text = source.partial + data
        if source.ends_in_cr and text:  # a line's end that came in two
            text = text.removeprefix(b"\n")
            source.ends_in_cr = False
        end = len(text)
        if not last:
            end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
            if len(text) - end >= _MAX_LINE:
                end = _end_of_whole(text)
        text, source.partial = text[:end], text[end:]
        source.ends_in_cr = text.endswith(b"\r") or (not text and source.ends_in_cr)
        at = 0
        for mark in _MARK.finditer(text):
            self._pass_on(source, text[at : mark.start()])
            source.name = mark[1]
            at = mark.end()
        self._pass_on(source, text[at:])

    def _pass_on(self, source: _Source, text: bytes) -> None:
        if text and not self._gone:
            other = source.other.name if source.other is not None else None
            name = (source.name or other or b"worker")[:_MAX_NAME]
            head = _HEADER.pack(b"O", source.stream, source.pid, len(name)) + name
            for part in _parts(text):
                self._kept.append(head + part)
                self._kept_bytes += len(head) + len(part)
            self._flush()

    def _flush(self, most: int | None = None) -> None:
        for _ in range(len(self._kept) if most is None else most):
            try:
                self._driver.send(self._kept[0])
            except (BlockingIOError, TimeoutError):
                break
            except OSError as error:
                if error.errno in wire.SHORT:
                    break
                self._gone = True
                self._kept.clear()
                self._kept_bytes = 0
                break
            self._kept_bytes -= len(self._kept.popleft())
        if bool(self._kept) != self._waits_for_room and self._driver.gettimeout() == 0:
            self._waits_for_room = bool(self._kept)
            if self._waits_for_room:
                self._selector.register(
                    self._driver, selectors.EVENT_WRITE, self._on_room
                )
            else:
                self._selector.unregister(self._driver)

    def _on_room(self) -> None:
        self._flush()
        self._settle()


def _end_of_whole(text: bytes) -> int:
    """Where a line that goes on can be cut: not in a character, and not in a mark."""
    mark = text.rfind(b"\x1e", -_MAX_MARK)
    if mark >= 0 and b"\x03" not in text[mark:]:
        return mark
    return _between_characters(text, len(text))


def _between_characters(text: bytes, end: int) -> int:
    """``end``, or up to three bytes before it, where a character of UTF-8 begins."""
    for start in range(end - 1, max(end - 5, 0), -1):
        first = text[start]
        if first & 0xC0 == 0x80:
            continue
        size = 4 if first >= 0xF0 else 3 if first >= 0xE0 else 2 if first >= 0xC0 else 1
        return start if start + size > end else end
    return end


def _parts(text: bytes) -> Iterator[bytes]:
    """The text in parts for one packet each, cut between lines if it can be."""
    while len(text) > _MAX_TEXT:
        end = max(text.rfind(b"\n", 0, _MAX_TEXT), text.rfind(b"\r", 0, _MAX_TEXT)) + 1
        if not end:  # a line that long
            end = _between_characters(text, _MAX_TEXT)
        elif text[end - 1 : end + 1] == b"\r\n":
            end += 1
        yield text[:end]
        text = text[end:]
    if text:
        yield text


# In the driver ------------------------------------------------------------------------


class Printer:
    """Prints what workers print, in a thread that ends with the session."""

    def __init__(
        self,
        sock: socket.socket,
        shown: Shown,
        others: Callable[[bytes, list[int]], None],
    ) -> None:
        self._sock = sock
        self._others = others  # takes packets that are not output
        self._ended = threading.Event()
        self._ended.set()  # nothing is printed before it is started
        self._shown = shown

    def start(self) -> None:
        """Raises RuntimeError if there is no thread to be had."""
        self._ended.clear()
        try:
            # Not a threading.Thread: a notebook shows what those print in the cell that
            # started them, and output belongs to the cell that runs now.
            _thread.start_new_thread(self._run, ())
        except RuntimeError:
            self._sock.close()
            self._ended.set()
            raise

    def join(self, timeout: float) -> None:
        """Wait until all is printed; the supervisor has closed its end."""
        self._ended.wait(timeout)

    def _run(self) -> None:
        try:
            while True:
                pause = self._shown.pause(time.monotonic())
                self._sock.settimeout(pause)
                try:
                    packet, fds = wire.receive(self._sock)
                except TimeoutError:
                    packet, fds = b"", []
                except wire.OutOfDescriptorsError:  # it is there when there are some
                    time.sleep(_PARTIAL_S)
                    continue
                else:
                    if not packet:
                        break
                if packet[:1] not in (b"", b"O"):
                    self._others(packet, fds)
                    continue
                self._print(self._shown.take(_lines(packet), time.monotonic()))
            self._print(self._shown.flush())
        finally:
            self._sock.close()
            self._ended.set()

    def _print(self, lines: list[Line]) -> None:
        for stream, group in itertools.groupby(lines, lambda line: line.stream):
            out = sys.stdout if stream == STDOUT else sys.stderr
            coloured = _coloured(out)
            text = "".join(line.format(coloured) for line in group)
            # A closed or broken stream of the driver's is no reason to stop reading.
            with contextlib.suppress(Exception):
                out.write(text)
                out.flush()


def _coloured(out: Any) -> bool:
    try:
        return out.isatty() and "NO_COLOR" not in os.environ
    except Exception:
        return False


@dataclass(frozen=True, slots=True)
class Line:
    stream: int
    pid: int
    name: str
    text: str

    def format(self, coloured: bool) -> str:
        prefix = f"({self.name} pid={self.pid})"
        if coloured:
            prefix = f"\x1b[36m{prefix}\x1b[0m"
        return f"{prefix} {self.text}\n"


def _lines(packet: bytes) -> list[Line]:
    if not packet:
        return []
    _, stream, pid, size = _HEADER.unpack_from(packet)
    at = _HEADER.size + size
    name = packet[_HEADER.size : at].decode(errors="replace")
    text = packet[at:].decode(errors="replace")
    lines = _LINE_END.split(text)
    if not lines[-1]:
        lines.pop()
    return [Line(stream, pid, name, line) for line in lines]


class Shown:
    """Which lines are printed. Pure: the caller tells the time.

    The same line from several workers within some seconds, numbers aside, is printed
    once, and then how often it came again: as Ray does. And no more than so many lines
    a second are printed; it says how many were not.
    """

    def __init__(self, window_s: float, lines_per_second: float) -> None:
        self._window = window_s
        self._rate = lines_per_second
        # Oldest first. The first of a plain dict is looked for among all that has gone.
        self._recent: OrderedDict[str, _Repeated] = OrderedDict()
        self._second = 0
        self._in_second = 0
        self._left_out = 0

    @classmethod
    def from_environment(cls) -> Shown:
        dedup = os.environ.get("SKATE_DEDUP_LOGS", "1") != "0"
        rate = variables.number(
            _LINES_PER_SECOND, 10_000, "a number of lines, zero or more; 0 for all"
        )
        return cls(_WINDOW_S if dedup else 0.0, rate)

    def pause(self, now: float) -> float | None:
        """When to call ``take`` again, though there may be no lines."""
        if self._left_out:
            return 1.0
        for repeated in self._recent.values():
            return max(0.01, repeated.since + self._window - now)
        return None

    def take(self, lines: list[Line], now: float) -> list[Line]:
        shown = [line for line in lines if self._is_news(line, now)]
        while self._recent:
            key, oldest = next(iter(self._recent.items()))
            if now - oldest.since < self._window:
                break
            del self._recent[key]
            shown += oldest.summary()
        return self._within_rate(shown, now)

    def flush(self) -> list[Line]:
        summaries = [line for r in self._recent.values() for line in r.summary()]
        self._recent.clear()
        return summaries + self._report_left_out()

    def _is_news(self, line: Line, now: float) -> bool:
        words = line.text.split()
        key = " ".join(word for word in words if not _NUMBERS.search(word))
        if not self._window or not key:
            return True
        repeated = self._recent.get(key)
        if repeated is None:
            self._recent[key] = _Repeated(line, now)
            return True
        repeated.pids.add(line.pid)
        if len(repeated.pids) == 1:  # what one worker says twice, it means twice
            return True
        repeated.last = line
        repeated.count += 1
        return False

    def _within_rate(self, lines: list[Line], now: float) -> list[Line]:
        before: list[Line] = []
        # Less than one a second is one in so many seconds.
        second = int(now * min(self._rate or 1.0, 1.0))
        if second != self._second:
            self._second, self._in_second = second, 0
            before = self._report_left_out()
        if self._rate:
            room = max(0, max(1, int(self._rate)) - self._in_second)
            self._left_out += len(lines[room:])
            lines = lines[:room]
            self._in_second += len(lines)
        return before + lines

    def _report_left_out(self) -> list[Line]:
        count, self._left_out = self._left_out, 0
        if not count:
            return []
        text = (
            f"{count} lines were not shown: workers print more than {self._rate:g} a "
            "second. SKATE_LOG_LINES_PER_SECOND=0 shows all."
        )
        return [Line(STDERR, os.getpid(), "skate", text)]


class _Repeated:
    def __init__(self, line: Line, now: float) -> None:
        self.since = now
        self.pids = {line.pid}
        self.last = line
        self.count = 0

    def summary(self) -> list[Line]:
        if self.count == 0:
            return []
        if self.count == 1:
            return [self.last]
        text = f"{self.last.text} [repeated {self.count}x by other workers]"
        return [replace(self.last, text=text)]
