"""Looking into a session: stacks, spans in the timeline, other processes' sessions.

``skate.why``, ``skate.summary`` and ``skate.timeline`` answer most questions; this is
the rest. From a terminal: ``skate top``, ``skate stack``, ``skate timeline``.
"""

from ._leftovers import leftovers as leftovers
from ._observe import SessionView as SessionView
from ._observe import Summary as Summary
from ._observe import attach as attach
from ._observe import profile as profile
from ._observe import stacks as stacks

__all__ = ["SessionView", "Summary", "attach", "leftovers", "profile", "stacks"]

for _name in __all__:
    globals()[_name].__module__ = __name__
del _name
