"""Groups whose session ends, or that are dropped: no call hangs, and nothing stays."""

from __future__ import annotations

import textwrap

import pytest
from programs import run

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

PAIR = """
import sys, threading
import numpy as np
import skate
from skate.collective import GroupSpec

@skate.remote
class Other:
    def join(self):
        self.group = GroupSpec("pair", 2).join(1, 60)

skate.init("embedded", num_cpus=2)
other = Other.remote()
joined = other.join.remote()
group = GroupSpec("pair", 2).join(0, 60)
skate.get(joined)
"""


@pytest.mark.parametrize(
    "call",
    [
        "group.allreduce(np.ones(4), async_op=True)",
        "group.recv(np.ones(4), 1, async_op=True)",
    ],
)
def test_a_program_ends_although_a_call_waits_at_its_shutdown(call: str) -> None:
    program = f"""
    handle = {call}
    skate.shutdown()
    for end in (handle.wait, lambda: group.barrier(60)):
        try:
            end()
        except skate.exceptions.EngineDiedError as error:
            print(error)
    """
    printed = run(PAIR + textwrap.dedent(program), seconds=30)
    assert printed.count("group 'pair', rank 0 of 2: the session has ended") == 2
