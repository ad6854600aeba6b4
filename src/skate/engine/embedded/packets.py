"""What processes tell the supervisor, byte by byte: ``Note`` of supervisor_link.hpp."""

from __future__ import annotations

import pickle
import struct

from ... import _core
from . import events as life
from .processes import Proc

_PROC = struct.Struct("=II")
_ID = struct.Struct("=QQ")
_ERRNO = struct.Struct("=i")

MAP, SPILL_FILE = _core.NOTE_MAP, _core.NOTE_SPILL_FILE
ASK, TELL = _core.NOTE_ASK, _core.NOTE_TELL
WANT_WORKER, WANT_LEASE = _core.NOTE_WANT_WORKER, _core.NOTE_WANT_LEASE


def proc_of(payload: bytes, at: int = 0) -> Proc:
    return Proc(*_PROC.unpack_from(payload, at))


def id_of(payload: bytes) -> int:
    """An object, task or actor."""
    high, low = _ID.unpack_from(payload)
    return int(high) << 64 | int(low)


def descriptor_answer(kind: bytes, error: int) -> bytes:
    """Goes with a descriptor, or says why there is none."""
    return kind + _ERRNO.pack(error)


def cannot_answer(error: OSError) -> bytes:
    """Instead of an answer; the question raises an error that names this one."""
    return _core.NOTE_CANNOT_ANSWER + _ERRNO.pack(error.errno or 0)


def event_of(sender: Proc, kind: bytes, payload: bytes) -> life.Event | None:
    """The event that a note is; None for those that the policy does not hear."""
    match kind:
        case _core.NOTE_WANT_LEASE:
            needs, env = pickle.loads(payload[_ID.size :])
            return life.LeaseWanted(sender, id_of(payload), needs, env)
        case _core.NOTE_DROP_LEASE:
            return life.LeaseDropped(sender, id_of(payload))
        case _core.NOTE_LEASE_DONE:
            return life.LeaseDone(proc_of(payload), any(payload[_PROC.size :]))
        case _core.NOTE_UNWANTED:
            return life.ActorUnwanted(id_of(payload), proc_of(payload, _ID.size))
        case _core.NOTE_UNREACHED:
            return life.ActorUnreached(id_of(payload))
        case _core.NOTE_BLOCKED:
            return life.Blocked(sender)
        case _core.NOTE_RUNNING:
            return life.Unblocked(sender)
        case _core.NOTE_TOKEN_FREE:
            return life.CpuFree()
        case _core.NOTE_CONFIRM:
            dead = proc_of(payload)
            held = payload[_PROC.size]
            return life.Confirmed(
                sender,
                dead,
                bool(held & _core.HOLDS_OBJECTS),
                bool(held & _core.HOLDS_BLOCKS),
                bool(held & (_core.CAME_BY_OBJECTS | _core.CAME_BY_BLOCKS)),
            )
        case _core.NOTE_LET_GO:
            return life.LetGo(proc_of(payload))
    return None
