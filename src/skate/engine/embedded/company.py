"""What of the program would end with a worker that has nothing to do."""

from __future__ import annotations

import _thread
import os
import pickle
import threading

from ... import _core
from ...exceptions import SkateError


def has_company(node: _core.Node) -> bool:
    """Whether threads of the program, or processes that it had started, go on here."""
    # Also those that threading knows nothing of. skate has none in a worker of the
    # pool that Python has begun, but for one that soon ends, for text without a line's
    # end.
    if _thread._count() > 0 or threading.active_count() > 1:
        return True
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return _has_left_some(node)
    return True


def _has_left_some(node: _core.Node) -> bool:
    """What its children had started, and left, is the supervisor's."""
    try:
        answer, _ = node.ask(pickle.dumps(("has_offspring",)))
    except SkateError:
        return True  # it may
    found: bool = pickle.loads(answer)
    return found
