"""How a dead process is forgotten: who has still to answer, who holds what of it.

Part of the policy in ``lifecycle``. Deaths are kept by the whole name of the process.
Its place is free as soon as everybody has drained its rings; what it owned, and its
memory, live on until nobody holds anything of them. A death costs what it concerns: how
many of the dead are still held does not matter.

Many may end at once, and most that could be asked of one are about to follow it. So
rounds of asking begin together, when ``ask`` is called, and who was killed is waited
for, but not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .events import Command, Confirmed, Died, Recycle, TellDied, TellForget
from .processes import Cause, Forget, Proc

_CLEAN_ROUNDS = 2


@dataclass(slots=True)
class _Death:
    cause: Cause
    detail: int
    successor: Proc | None
    unread_by: frozenset[Proc]  # are asked in the first round, beside those that run
    waiting: set[Proc] = field(default_factory=set)  # did not answer in this round
    objects_held: bool = False
    blocks_held: bool = False
    came_by: bool = False
    # Who said so, when asked last. One that dies lets go without another word.
    holders: set[Proc] = field(default_factory=set)
    let_go: bool = False  # somebody did, after it had answered in this round
    # Rounds in a row in which nobody held anything. What one process holds may pass to
    # another that has just answered; it says so in the next round. So after two rounds
    # without, nobody does.
    objects_clean: int = 0
    blocks_clean: int = 0
    step: int = -1  # the last one that was told


class Deaths:
    """Those that somebody has still to do with.

    Args:
        running: who is asked: every process that runs, or is about to. One that waits
            for resources has nothing in its memory yet.
        drained: called when the place of a dead process is free.
    """

    def __init__(
        self, running: Mapping[Proc, object], drained: Callable[[Proc], None]
    ) -> None:
        self._running = running
        self._drained = drained
        self._deaths: dict[Proc, _Death] = {}
        self._to_ask: dict[Proc, None] = {}  # the dead whose next round is to begin
        self._doomed: set[Proc] = set()
        self._to_answer: dict[Proc, set[Proc]] = {}  # process -> the dead
        self._held_by: dict[Proc, set[Proc]] = {}  # process -> the dead

    def __len__(self) -> int:
        return len(self._deaths)

    def doom(self, proc: Proc) -> None:
        """It was killed, and dies soon: nothing that it is told matters."""
        self._doomed.add(proc)

    def add(self, event: Died, successor: Proc | None) -> list[Command]:
        dead = event.proc
        self._deaths[dead] = _Death(
            event.cause, event.detail, successor, event.unread_by
        )
        self._to_ask[dead] = None
        self._doomed.discard(dead)
        commands: list[Command] = []
        for earlier in sorted(
            self._to_answer.pop(dead, set()) | self._held_by.pop(dead, set())
        ):
            commands += self._without_word_of(dead, earlier)
        return commands

    def ask(self) -> list[Command]:
        """Begin the rounds that are due."""
        commands: list[Command] = []
        while self._to_ask:
            due, self._to_ask = self._to_ask, {}
            for dead in due:
                commands += self._begin_round(dead, self._deaths[dead])
        return commands

    def _begin_round(self, dead: Proc, death: _Death) -> list[Command]:
        """Ask everybody what they (still) hold of ``dead``."""
        self._forget_holders(dead, death)
        death.objects_held = death.blocks_held = False
        death.came_by = death.let_go = False
        # One of those may have died since: its place has no reader any more.
        unread_by, death.unread_by = death.unread_by - self._deaths.keys(), frozenset()
        death.waiting = {*self._running, *unread_by}
        if not death.waiting:
            return self._settle(dead, death)
        for by in death.waiting:
            self._to_answer.setdefault(by, set()).add(dead)
        return [
            TellDied(
                to, dead, death.cause, death.detail, death.successor, death.step >= 0
            )
            for to in dict.fromkeys([*self._running, *unread_by])
            if to not in self._doomed
        ]

    def _without_word_of(self, silent: Proc, dead: Proc) -> list[Command]:
        """``silent`` has died as well: what it held of ``dead`` it holds no more."""
        death = self._deaths[dead]
        if dead in self._to_ask:
            return []
        was_asked = silent in death.waiting
        death.let_go |= was_asked or silent in death.holders
        death.waiting.discard(silent)
        death.holders.discard(silent)
        if death.waiting:
            return []
        if was_asked:
            return self._settle(dead, death)
        if death.let_go:
            self._to_ask[dead] = None
        return []

    def confirmed(self, event: Confirmed) -> list[Command]:
        death = self._deaths.get(event.dead)
        if death is None or event.by not in death.waiting:
            return []
        death.waiting.discard(event.by)
        _discard(self._to_answer, event.by, event.dead)
        death.objects_held |= event.holds_objects
        death.blocks_held |= event.holds_blocks
        death.came_by |= event.came_by
        if event.holds_objects or event.holds_blocks or event.came_by:
            death.holders.add(event.by)
            self._held_by.setdefault(event.by, set()).add(event.dead)
        return [] if death.waiting else self._settle(event.dead, death)

    def let_go(self, dead: Proc) -> None:
        death = self._deaths.get(dead)
        if death is None:
            return
        death.let_go = True
        if not death.waiting:
            self._to_ask[dead] = None

    def _forget_holders(self, dead: Proc, death: _Death) -> None:
        for by in death.holders:
            _discard(self._held_by, by, dead)
        death.holders.clear()

    def _settle(self, dead: Proc, death: _Death) -> list[Command]:
        """Everybody has answered: its borrows may go, then more; or ask again."""
        objects_held = death.objects_held or death.came_by
        blocks_held = death.blocks_held or death.came_by
        death.objects_clean = 0 if objects_held else death.objects_clean + 1
        death.blocks_clean = 0 if blocks_held else death.blocks_clean + 1
        step = Forget.BORROWS
        if death.objects_clean >= _CLEAN_ROUNDS:
            step = Forget.ALL if death.blocks_clean >= _CLEAN_ROUNDS else Forget.OBJECTS
        commands: list[Command] = []
        if step > death.step:
            if death.step < 0:
                self._drained(dead)
            death.step = step
            commands += [
                TellForget(to, dead, step)
                for to in self._running
                if to not in self._doomed
            ]
        if step == Forget.ALL:
            self._forget_holders(dead, death)
            del self._deaths[dead]
            commands.append(Recycle(dead))
        elif not self._running:
            pass  # the session ends
        elif (
            death.let_go
            or death.came_by
            or 0 < death.objects_clean < _CLEAN_ROUNDS
            or 0 < death.blocks_clean < _CLEAN_ROUNDS
        ):
            self._to_ask[dead] = None
        return commands


def _discard(table: dict[Proc, set[Proc]], key: Proc, value: Proc) -> None:
    values = table.get(key)
    if values is not None:
        values.discard(value)
        if not values:
            del table[key]
