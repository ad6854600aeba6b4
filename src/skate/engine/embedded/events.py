"""What the policy in ``lifecycle`` hears, and what it says: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..._runtime_env import NO_ENV, RuntimeEnv
from ..gpus import Id
from .actors import ActorRequest
from .processes import Cause, Kind, Proc

# Events ------------------------------------------------------------------------------


class WorkerWanted(NamedTuple):
    """Tasks wait and no idle worker does. ``active``: pool workers not blocked."""

    active: int
    starting: bool


class LeaseWanted(NamedTuple):
    owner: Proc
    task: int
    resources: Mapping[str, float]
    runtime_env: RuntimeEnv = NO_ENV


class LeaseDropped(NamedTuple):
    """The task was cancelled before it had got what it needs."""

    owner: Proc
    task: int


class LeaseDone(NamedTuple):
    worker: Proc
    is_worn_out: bool = False  # it is about to end


class ActorWanted(NamedTuple):
    owner: Proc
    proc: Proc  # from ``allocate``
    request: ActorRequest


class ActorConstructed(NamedTuple):
    proc: Proc


class ActorUnwanted(NamedTuple):
    """Its last handle is gone; ``told`` was told to finish and end."""

    actor_id: int
    told: Proc


class ActorUnreached(NamedTuple):
    """Nobody can reach it, nothing was told, and its constructor has not ended."""

    actor_id: int


class ActorKilled(NamedTuple):
    actor_id: int
    no_restart: bool


class GroupWanted(NamedTuple):
    """A placement group: set the sum of its bundles aside, under names of its own.

    ``never``: the session can never have it; what is of the group waits.
    """

    group: str
    bundles: tuple[Mapping[str, float], ...]
    never: bool = False


class GroupRemoved(NamedTuple):
    group: str


class Blocked(NamedTuple):
    """User code in a leased process waits, and needs no CPU meanwhile."""

    proc: Proc


class Unblocked(NamedTuple):
    proc: Proc


class CpuFree(NamedTuple):
    """A pool worker has put a token back because one is wanted."""


class CpusTaken(NamedTuple):
    """The outcome of ``TakeCpus``."""

    cpus: int


class HoldOver(NamedTuple):
    """The time of ``TimeHold`` is up."""

    number: int


class Forked(NamedTuple):
    """The process of a ``Fork`` has been made."""

    proc: Proc


class NotForked(NamedTuple):
    """It could not be made, and that was tried for a while. ``why``: for the user."""

    proc: Proc
    why: str


class RoomAgain(NamedTuple):
    """Processes may be had again; ``room`` of ``Lifecycle`` had said that not."""


class RoomWanted(NamedTuple):
    """Somebody asks for an actor, and there is no place for it."""


class Died(NamedTuple):
    proc: Proc
    cause: Cause
    detail: int
    # Processes that do not run yet to which it had sent something: they shall read it.
    unread_by: frozenset[Proc] = frozenset()


class Confirmed(NamedTuple):
    """``by`` has drained the rings of ``dead``, and says what it still holds of it.

    ``came_by``: it has come to hold something of it since it last said so.
    """

    by: Proc
    dead: Proc
    holds_objects: bool
    holds_blocks: bool
    came_by: bool = False


class LetGo(NamedTuple):
    """A process has let go of the last it held of ``dead``, or of its memory."""

    dead: Proc


Event = (
    WorkerWanted
    | LeaseWanted
    | LeaseDropped
    | LeaseDone
    | ActorWanted
    | ActorConstructed
    | ActorUnwanted
    | ActorUnreached
    | ActorKilled
    | GroupWanted
    | GroupRemoved
    | Blocked
    | Unblocked
    | CpuFree
    | CpusTaken
    | HoldOver
    | Forked
    | NotForked
    | RoomAgain
    | RoomWanted
    | Died
    | Confirmed
    | LetGo
)

# Commands ----------------------------------------------------------------------------


class Prepare(NamedTuple):
    """Make the memory of a process that runs later: others may send to it now."""

    proc: Proc
    kind: Kind


class Fork(NamedTuple):
    proc: Proc
    kind: Kind
    runtime_env: RuntimeEnv = NO_ENV
    gpus: tuple[Id, ...] = ()


class Kill(NamedTuple):
    proc: Proc
    cause: Cause = Cause.KILLED  # what others are told


class Retire(NamedTuple):
    """Let a worker end as soon as no task runs that it has started."""

    proc: Proc


class GrantLease(NamedTuple):
    owner: Proc
    task: int
    worker: Proc


class RefuseLease(NamedTuple):
    """The task gets no worker, and fails."""

    owner: Proc
    task: int
    why: str | None  # for the user; None: its placement group was removed


class KeepNote(NamedTuple):
    """Whoever hears of ``detail`` may ask for ``text``."""

    detail: int
    text: str


class TellDied(NamedTuple):
    to: Proc
    dead: Proc
    cause: Cause
    detail: int
    successor: Proc | None = None  # where the actor lives that it was
    place_is_free: bool = False  # another may have it by now


class TellForget(NamedTuple):
    """Forget as much of ``dead`` as ``step`` says, a ``Forget``.

    From the first step on its place belongs to nobody, or to another process.
    """

    to: Proc
    dead: Proc
    step: int


class Recycle(NamedTuple):
    """Nobody holds anything of ``proc`` any more: its segment may go."""

    proc: Proc


class TakeCpus(NamedTuple):
    """Take up to ``cpus`` tokens from the pool; answer with ``CpusTaken``."""

    cpus: int


class GiveCpus(NamedTuple):
    cpus: int


class WantCpus(NamedTuple):
    """Ask pool workers for ``cpus`` tokens as they end their tasks."""

    cpus: int


class ServePool(NamedTuple):
    """Give a token to a worker of the pool that has work; else ``CpusTaken(1)``."""


class TimeHold(NamedTuple):
    """Answer with ``HoldOver`` in so many seconds.

    ``cpus``: or as soon as so many tokens of the pool are free; 0: not before.
    """

    number: int
    seconds: float
    cpus: int = 0


Command = (
    Prepare
    | Fork
    | Kill
    | Retire
    | GrantLease
    | RefuseLease
    | KeepNote
    | TellDied
    | TellForget
    | Recycle
    | ServePool
    | TakeCpus
    | GiveCpus
    | WantCpus
    | TimeHold
)
