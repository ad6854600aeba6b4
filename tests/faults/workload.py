"""What the fault tests run. Imports little: a fresh worker loads it at each kill."""

from __future__ import annotations

import os
import resource
import signal
import time

import numpy as np

import skate


@skate.remote(max_retries=-1)
def echo(x: int) -> tuple[int, int]:
    return x, os.getpid()


@skate.remote(max_retries=-1)
def block(x: int) -> np.ndarray:
    return np.full(100_000, x)


@skate.remote(max_retries=-1)
def nested(x: int) -> int:
    first, second = skate.get([echo.remote(x), block.remote(x)])
    return first[0] + int(second[-1])


@skate.remote(max_retries=0)
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@skate.remote
class Counter:
    def __init__(self) -> None:
        self.n = 0

    def add(self) -> int:
        self.n += 1
        return self.n

    def pid(self) -> int:
        return os.getpid()

    def max_files(self) -> int:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def sleep(self) -> None:
        time.sleep(60)


@skate.remote
class Log:
    """Answers with its incarnation, the number given, and what it saw before."""

    def __init__(self, payload: bytes = b"") -> None:
        self.payload = payload
        self.last: dict[str, int] = {}

    def note(self, caller: str, number: int) -> tuple[str, int, int]:
        before = self.last.get(caller, -1)
        self.last[caller] = number
        return str(os.getpid()), number, before

    def size(self) -> int:
        return len(self.payload)


@skate.remote
class Relay:
    """A caller of its own."""

    def __init__(self, log: skate.ActorHandle[Log] | None) -> None:
        self.log = log
        self.name = str(os.getpid())

    def ready(self) -> None: ...

    def note_all(self, start: int, n: int) -> list[tuple[str, int, int]]:
        refs = [self.log.note.remote(self.name, i) for i in range(start, start + n)]
        return skate.get(refs)

    def make(self) -> skate.ActorHandle[Log]:
        self.made = Log.remote()
        return self.made
