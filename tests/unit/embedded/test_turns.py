"""Commands of the policy, when one of them cannot be carried out."""

from __future__ import annotations

import pytest

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from skate.engine.embedded.events import (
    Command,
    Died,
    TellDied,
    WorkerWanted,
)
from skate.engine.embedded.lifecycle import Lifecycle
from skate.engine.embedded.processes import Cause, Proc
from skate.engine.embedded.turns import Turns


def test_a_command_that_fails_keeps_no_other_from_being_carried_out() -> None:
    life = Lifecycle({"CPU": 4.0}, max_procs=64)
    driver = life.allocate("driver")
    assert driver is not None
    done: list[Command] = []
    fails_for: Proc | None = None

    def carry_out(command: Command) -> None:
        done.append(command)
        if isinstance(command, TellDied) and command.to == fails_for:
            raise MemoryError

    turns = Turns(life, carry_out)
    turns.tell(WorkerWanted(0, starting=False))
    turns.tell(WorkerWanted(1, starting=False))
    first, second = sorted(set(life.members) - {driver})
    done.clear()
    turns.tell(Died(first, Cause.SIGNALED, 9))
    fails_for = driver
    with pytest.raises(MemoryError):
        turns.tell_news()
    told = [command.to for command in done if isinstance(command, TellDied)]
    assert sorted(told) == [driver, second]
    # What comes later is heard as before.
    done.clear()
    turns.tell(WorkerWanted(1, starting=False))
    assert done
