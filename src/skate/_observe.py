"""Where the time goes and why nothing happens: ``summary``, ``timeline``, ``why``."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._exact import printable
from ._ref import ObjectRef
from ._runtime import current, engine_of
from .engine import attach as _attach
from .engine.protocol import FunctionSummary

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from os import PathLike

    from .engine.protocol import Observer

_KIB = 1024
_HEADS = (
    *("function", "done/s", "done", "running", "queued", "failed"),
    *("p50", "p99", "CPU", "in", "out"),
)


@dataclass(frozen=True)
class Summary:
    """What a session has done so far, by function. Its text is a table."""

    engine: str
    seconds: float  # since the session began
    cpus: int
    cpus_used: int
    workers: int
    store_bytes: int
    store_limit: int
    functions: Mapping[str, FunctionSummary]

    def table(
        self, earlier: Summary | None = None
    ) -> tuple[list[str], list[list[str]]]:
        """Headings and rows, the busiest function first.

        ``earlier`` is a summary of the same session: rates are those since then.
        """
        seconds = self.seconds - (earlier.seconds if earlier else 0.0)
        heads = list(_HEADS)
        rows = []
        for name, now in sorted(
            self.functions.items(), key=lambda item: item[1].total_s, reverse=True
        ):
            before = earlier.functions.get(name) if earlier else None
            done = now.finished - (before.finished if before else 0)
            cpu = now.cpu_s - (before.cpu_s if before else 0.0)
            rows.append(
                [
                    name,
                    f"{done / seconds:.1f}" if seconds > 0 else "",
                    str(now.finished),
                    str(now.running),
                    str(now.queued),
                    str(now.failed),
                    _duration(now.p50_s),
                    _duration(now.p99_s),
                    f"{100 * cpu / seconds:.0f} %" if seconds > 0 <= cpu else "",
                    _size(now.argument_bytes),
                    _size(now.result_bytes),
                ]
            )
        return heads, rows

    def title(self) -> str:
        limit = f" of {_size(self.store_limit)}" if self.store_limit else ""
        return (
            f"skate ({self.engine}), {self.seconds:.1f} s: {self.cpus_used} of "
            f"{self.cpus} CPUs in use, {self.workers} workers, "
            f"{_size(self.store_bytes)}{limit} in the store"
        )

    def format(self, earlier: Summary | None = None) -> str:
        """The title and the table, as text."""
        heads, rows = self.table(earlier)
        lines = [heads, *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [self.title()]
        for first, *rest in lines:
            cells = [first.ljust(widths[0])]
            cells += [c.rjust(w) for c, w in zip(rest, widths[1:], strict=True)]
            text.append("  ".join(cells))
        return "\n".join(text)

    def __str__(self) -> str:
        return self.format()


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.0f} ns"


def _size(count: float) -> str:
    if math.isnan(count):
        return ""
    for unit in ("B", "KiB", "MiB"):
        if count < _KIB:
            return f"{count:.3g} {unit}" if count < 100 else f"{count:.0f} {unit}"
        count /= _KIB
    return f"{count:.1f} GiB"


class SessionView:
    """Looks at a running session, this process's own or another's."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def summary(self) -> Summary:
        facts = self._observer.session()
        del facts["ended"]
        return Summary(functions=self._observer.functions(), **facts)

    @property
    def ended(self) -> bool:
        return bool(self._observer.session()["ended"])

    def timeline(self, path: str | PathLike[str]) -> int:
        """See ``skate.timeline``."""
        import json

        events = self._observer.trace()
        with open(path, "w") as file:
            json.dump(events, file)
        return len(events["traceEvents"])

    def stacks(self) -> str:
        """See ``skate.debug.stacks``."""
        return self._observer.stacks()


def attach(pid: int | None = None) -> SessionView:
    """Look at a session of another process of the same user's.

    Args:
        pid: of its driver; None takes the only one there is.

    Raises:
        ValueError: there is no such session, or there are several to choose from.
    """
    return SessionView(_attach(pid))


def summary() -> Summary:
    """What this session has done, by function: rates, durations, CPU, bytes.

    ``print(skate.summary())`` shows a table; the attributes are for programs.
    """
    return SessionView(current().observer()).summary()


def timeline(path: str | PathLike[str]) -> int:
    """Write the last events of every process as a trace for https://ui.perfetto.dev.

    Recording never stops, and costs some tens of nanoseconds an event; each process
    keeps its last 32,768. Arrows lead from ``.remote`` to where the task ran, and on to
    the ``get`` that took its value; spans come from ``skate.debug.profile``.

    Returns:
        The number of trace entries written.
    """
    return SessionView(current().observer()).timeline(path)


def stacks() -> str:
    """The Python stacks of the driver and of every worker that runs something.

    A process that hangs in C code is shown too. The same from another terminal:
    ``skate stack``.
    """
    return SessionView(current().observer()).stacks()


@contextmanager
def profile(name: str) -> Iterator[None]:
    """``with skate.debug.profile("step"): ...`` is a slice in ``skate.timeline``."""
    observer = current().observer()
    start = observer.now()
    try:
        yield
    finally:
        observer.span(printable(name), start)


def why(ref: ObjectRef[Any]) -> str:
    """Why ``ref`` has no value yet, in words: where its task is, and what it waits for.

    Follows what the task itself waits for, down to the Python lines at which something
    runs, the resources that somebody holds, or the circle in which all wait.
    """
    if not isinstance(ref, ObjectRef):
        raise TypeError(f"skate.why takes an ObjectRef, not {ref!r}.")
    return engine_of(ref).why(ref)
