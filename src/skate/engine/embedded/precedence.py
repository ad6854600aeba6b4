"""Who is served though others always come before: a turn now and then.

Part of the policy in ``lifecycle``. As a rule what was asked for by who waits for it,
and what is small, is served first. After so many grants of CPUs the one that has waited
longest has its turn: no other gets CPUs until it has its own, or until the hold for it
ends (``holds``). And of the tokens that leases put back, the pool has every second one,
if there is work for it.
"""

from __future__ import annotations

from .requests import Request, Waiting

# Grants of CPUs between two turns; each may begin another tree of tasks, which needs
# workers of its own, so there are the fewer the more wait for others.
GRANTS = 8
_MOST_DOUBLINGS = 7


class Precedence:
    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._passed = 0  # grants since the last turn
        self._turn: Request | None = None
        self.has_denied = False  # others would have had what is free
        self._is_pools = False  # ... the next token that is free

    def granted(self, request: Request) -> None:
        if request is self._turn:
            self.end_turn()
        if request.units.get("CPU"):
            self._passed += 1
            self._is_pools = True

    def end_turn(self) -> None:
        self._turn = None
        self._passed = 0
        self.has_denied = False
        self._waiting.wake("CPU")

    def denies(self, request: Request) -> bool:
        """Whether what is free is for another, whose turn it is."""
        turn = self.turn()
        if turn is None or turn is request:
            return False
        return request.units.get("CPU", 0) > 0

    def turn(self) -> Request | None:
        if self._turn is not None and self._turn not in self._waiting:
            self.end_turn()
        return self._turn

    def begin_turn(self, blocked: int, cpus: int, most: int) -> Request | None:
        """``blocked``: leases that wait; ``most``: units that are not held for good."""
        turn = self.turn()
        doublings = min(blocked // max(1, cpus), _MOST_DOUBLINGS)
        if turn is not None or self._passed < GRANTS << doublings:
            return turn
        self._passed = 0
        self._turn = self._waiting.oldest_lacking("CPU", most)
        return self._turn

    def take_pools_turn(self) -> bool:
        """Whether the next token is the pool's; then the one after it is not."""
        is_pools, self._is_pools = self._is_pools, False
        return is_pools
