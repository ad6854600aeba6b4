"""For how long idle CPUs are held for a request that needs several.

Part of the policy in ``lifecycle``. While CPUs are collected, the pool stands back. But
its tasks need not end: one may go on for ever, or wait for another that does not run
meanwhile. So after some time the pool has as much for itself; then comes another hold,
twice as long. Both the request and plain tasks have their turn, also if the request is
given up and made again: a turn lasts until its time is up, whoever waits by then.
"""

from __future__ import annotations

import enum

from ..._amounts import UNIT
from .events import Command, TimeHold
from .requests import Request, Waiting

_FIRST_S = 1.0
_MOST_S = 60.0


class _Turn(enum.Enum):
    NOBODYS = enum.auto()
    REQUESTS = enum.auto()  # what is free is held
    POOLS = enum.auto()


class Hold:
    """One at a time, for the oldest: those behind it have what it collects as well."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._turn = _Turn.NOBODYS
        self._request: Request | None = None
        self._number = 0  # of the last timer
        self.seconds = 0.0  # of this turn

    def is_pools_turn(self) -> bool:
        return self._turn is _Turn.POOLS

    def begin(self, request: Request) -> list[Command]:
        """CPUs are collected for it, now or already."""
        if self._turn is _Turn.REQUESTS:
            # Not anew for another: if many come and go that would be for ever.
            if not self._waits():
                self._request = request
            return []
        if self._turn is _Turn.POOLS:  # also if its request waits no longer
            return []
        again = request is self._request
        self.seconds = min(2 * self.seconds, _MOST_S) if again else _FIRST_S
        self._request = request
        return self._begin(_Turn.REQUESTS)

    def over(self, number: int, used: int) -> list[Command]:
        """The time is up of a turn; ``used``: of the CPUs, in units."""
        if number != self._number or self._turn is _Turn.NOBODYS:
            return []
        if self._turn is _Turn.REQUESTS and self._request is not None:
            # Nobody need wait any longer once all is free that the request needs.
            cpus = self._request.units["CPU"]
            free = tokens_for(used + cpus) - tokens_for(used)
            return self._begin(_Turn.POOLS, free)
        self._turn = _Turn.NOBODYS
        return []

    def granted(self, request: Request) -> None:
        if request is self._request:
            self._request = None
            self._turn = _Turn.NOBODYS

    def _begin(self, turn: _Turn, cpus: int = 0) -> list[Command]:
        self._turn = turn
        self._number += 1
        return [TimeHold(self._number, self.seconds, cpus)]

    def _waits(self) -> bool:
        return self._request is not None and self._request in self._waiting


def tokens_for(cpus: int) -> int:
    """How many CPU tokens so many units of CPUs need."""
    return -(-cpus // UNIT)
