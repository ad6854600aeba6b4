"""What waits for resources: one line for each different need.

Part of the policy in ``lifecycle``. Whether a request fits depends on what it needs
alone, so only the heads of the lines are ever looked at, and of those only the ones
that lacked what has become free since: an event costs what it concerns, however many
wait.

What a task or an actor asks for goes before what the driver does: they may wait for it.
Of several, that of the deepest in a tree of tasks, and then of who began to ask last:
so trees are worked off depth first, and few are open at a time. Requests of one asker,
and those of the driver, are first come, first served.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from ..._amounts import in_units
from ..._placement import group_of
from ..._runtime_env import NO_ENV, RuntimeEnv
from .events import GroupWanted
from .processes import Proc

PROCESS = "process"  # what a request may lack, beside resources by their names


@dataclass(slots=True, eq=False)
class Request:
    """A lease, an actor or a placement group."""

    resources: Mapping[str, float]
    runtime_env: RuntimeEnv = NO_ENV
    owner: Proc | None = None  # lease
    task: int = 0
    actor: Proc | None = None
    group: GroupWanted | None = None
    asker: Proc | None = None  # None: the driver
    depth: int = 0  # of the asker in a tree of leases
    number: int = 0  # in order of arrival
    order: tuple[int, ...] = ()  # whose turn is first
    units: Mapping[str, int] = field(init=False)  # the resources, to add up

    def __post_init__(self) -> None:
        self.units = in_units(self.resources)

    def need(self) -> Hashable:
        if self.group is not None:
            bundles = self.group.bundles
            return tuple(tuple(sorted(bundle.items())) for bundle in bundles)
        # An actor has its process already, a lease may wait for one.
        return self.actor is None, tuple(sorted(self.resources.items()))

    def name(self) -> Hashable:
        if self.group is not None:
            return self.group.group
        return self.actor if self.actor is not None else (self.owner, self.task)


@dataclass(slots=True, eq=False)
class Line:
    """Requests of one need."""

    need: Hashable
    placement: str | None  # the placement group that they are of
    requests: OrderedDict[int, Request] = field(default_factory=OrderedDict)
    heap: list[tuple[tuple[int, ...], Request]] = field(default_factory=list)
    lacks: str = ""  # what its head waits for; "": to be looked at
    passed: int = 0  # grants since its oldest had one
    ages: bool = False  # it was passed over for what others had: not CPUs
    skipped: int = 0  # how often others had what it lacks, CPUs aside

    @property
    def head(self) -> Request:
        while self.heap[0][1].number not in self.requests:
            heapq.heappop(self.heap)
        return self.heap[0][1]

    @property
    def oldest(self) -> Request:
        return self.requests[next(iter(self.requests))]


class Waiting:
    """All that waits, and which lines are to be looked at."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, Line] = {}
        self._by_name: dict[Hashable, tuple[Line, int]] = {}
        self._by_owner: dict[Proc, dict[int, None]] = {}  # tasks
        self._askers: dict[Proc, tuple[int, int]] = {}  # when it began, how many wait
        self._by_placement: dict[str, dict[Line, None]] = {}
        self._lacking: dict[str, dict[Line, None]] = {}
        self._due: dict[Line, None] = {}
        self._last = itertools.count(1)
        self._first = itertools.count(-1, -1)

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, request: Request) -> bool:
        line, number = self._by_name.get(request.name(), (None, 0))
        return line is not None and line.requests[number] is request

    def __iter__(self) -> Iterator[Request]:
        """In order of arrival."""
        found = (line.requests[n] for line, n in self._by_name.values())
        return iter(sorted(found, key=lambda request: request.number))

    def find(
        self, *, task: int | None = None, actor: int | None = None
    ) -> tuple[Request, int] | None:
        """A task's request, or that of the actor in a place; how many are before it."""
        for line, number in self._by_name.values():
            found = line.requests[number]
            if found.owner is not None:
                matches = found.task == task
            else:
                matches = found.actor is not None and found.actor.index == actor
            if matches:
                return found, sum(n < number for _, n in self._by_name.values())
        return None

    def add(self, request: Request, *, first: bool = False) -> None:
        """``first``: before all that wait."""
        need = request.need()
        line = self._lines.get(need)
        if line is None:
            placement = group_of(request.resources) if request.group is None else None
            line = self._lines[need] = Line(need, placement)
            self._due[line] = None
            if placement is not None:
                self._by_placement.setdefault(placement, {})[line] = None
        request.number = next(self._first if first else self._last)
        request.order = self._order_of(request)
        line.requests[request.number] = request
        if first:
            line.requests.move_to_end(request.number, last=False)
        heapq.heappush(line.heap, (request.order, request))
        if line.head is request:
            self._look_at(line)
        self._by_name[request.name()] = line, request.number
        if request.owner is not None:
            self._by_owner.setdefault(request.owner, {})[request.task] = None

    def _order_of(self, request: Request) -> tuple[int, ...]:
        if request.number < 0:
            return 0, 0, 0, request.number
        if request.asker is None:
            return 2, 0, 0, request.number
        since, waiting = self._askers.get(request.asker, (request.number, 0))
        self._askers[request.asker] = since, waiting + 1
        return 1, -request.depth, -since, request.number

    def take(self, request: Request) -> None:
        """It waits no longer."""
        self._drop(request.name())

    def drop_task(self, owner: Proc, task: int) -> bool:
        return self._drop((owner, task))

    def drop_actor(self, proc: Proc) -> bool:
        return self._drop(proc)

    def drop_group(self, group: str) -> None:
        self._drop(group)

    def drop_owner(self, owner: Proc) -> None:
        for task in list(self._by_owner.get(owner, ())):
            self._drop((owner, task))

    def _drop(self, name: Hashable) -> bool:
        line, number = self._by_name.pop(name, (None, 0))
        if line is None:
            return False
        was_head = line.head.number == number
        request = line.requests.pop(number)
        if request.order[0] == 1 and request.asker is not None:
            since, waiting = self._askers.pop(request.asker)
            if waiting > 1:
                self._askers[request.asker] = since, waiting - 1
        if request.owner is not None:
            tasks = self._by_owner[request.owner]
            del tasks[request.task]
            if not tasks:
                del self._by_owner[request.owner]
        if len(line.heap) > 2 * len(line.requests) + 8:  # else they go one by one
            line.heap = [(left.order, left) for left in line.requests.values()]
            heapq.heapify(line.heap)
        if not line.requests:
            self._end(line)
        elif was_head:
            self._look_at(line)
        return True

    def _end(self, line: Line) -> None:
        del self._lines[line.need]
        self._look_at(line)
        del self._due[line]
        if line.placement is not None:
            lines = self._by_placement[line.placement]
            del lines[line]
            if not lines:
                del self._by_placement[line.placement]

    # Which to look at --------------------------------------------------------

    def due(self) -> list[Line]:
        """Lines whose heads may fit by now; they are looked at, or blocked again."""
        found, self._due = list(self._due), {}
        return found

    def block(self, line: Line, lacks: str, *, ages: bool) -> None:
        self._look_at(line)
        del self._due[line]
        line.lacks = lacks
        line.ages = ages
        line.skipped += line.ages
        self._lacking.setdefault(lacks, {})[line] = None

    def wake(self, name: str) -> None:
        """There is more of it than before."""
        for line in self._lacking.pop(name, ()):
            line.lacks = ""
            self._due[line] = None

    def wake_placement(self, group: str) -> None:
        for line in self._by_placement.get(group, ()):
            self._look_at(line)

    def _look_at(self, line: Line) -> None:
        if line.lacks:
            lines = self._lacking[line.lacks]
            del lines[line]
            if not lines:
                del self._lacking[line.lacks]
            line.lacks = ""
        self._due[line] = None

    def least_lacking(self, name: str) -> Request | None:
        """The head of a line that lacks it and wants the least of it."""
        heads = (line.head for line in self._lacking.get(name, ()))
        return min(heads, key=lambda head: head.units.get(name, 0), default=None)

    def first_lacking(self, name: str, most: int) -> Request | None:
        """Of the heads that wait for it and need at most so much, the next one."""
        heads = (line.head for line in self._lacking.get(name, ()))
        heads = (head for head in heads if head.units.get(name, 0) <= most)
        return min(heads, key=lambda request: request.order, default=None)

    def oldest_lacking(self, name: str, most: int) -> Request | None:
        """The oldest that waits for it and needs at most so much."""
        oldest = (line.oldest for line in self._lacking.get(name, ()))
        oldest = (request for request in oldest if request.units.get(name, 0) <= most)
        return min(oldest, key=lambda request: request.number, default=None)
