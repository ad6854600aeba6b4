"""Events one after the other: each is heard when all is done that the last one led to.

What is done may itself be an event: to kill a process that has not begun is its death.
The policy must not hear of it in the middle of its own commands, of which those that
follow would come too late: a successor would be started before it is prepared, or a
wish for CPUs be overwritten by an older one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .events import Command, Event
from .lifecycle import Lifecycle


class Turns:
    """
    Args:
        life: the policy.
        carry_out: does what a command says; may ``tell`` of what comes of it.
    """

    def __init__(self, life: Lifecycle, carry_out: Callable[[Command], None]) -> None:
        self._life = life
        self._carry_out = carry_out
        self._events: deque[Event] = deque()
        self._busy = False

    def tell(self, event: Event) -> None:
        """Let the policy hear of it, now or when it is its turn."""
        self._events.append(event)
        if not self._busy:
            self._take_all()

    def tell_news(self) -> None:
        """Let all hear of the deaths that there were since the last time."""
        self._take_all()  # what an error has left
        while commands := self._life.news():
            self._do(commands)
            self._take_all()

    def _take_all(self) -> None:
        while self._events:
            self._do(self._life.take(self._events.popleft()))

    def _do(self, commands: list[Command]) -> None:
        """All of them, also after one that fails: the others concern others."""
        self._busy = True
        failed: Exception | None = None
        try:
            for command in commands:
                try:
                    self._carry_out(command)
                except Exception as error:
                    failed = failed or error
        finally:
            self._busy = False
        if failed is not None:
            raise failed
