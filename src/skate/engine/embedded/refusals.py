"""What the core cannot do, in words: it calls these, and raises what they return."""

from __future__ import annotations

import errno
import os

from ...exceptions import (
    EngineDiedError,
    EngineError,
    GetTimeoutError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OwnerDiedError,
    ResourceError,
    SkateError,
)

_LISTED_HOLDERS = 5
_LACKING = {
    errno.EMFILE: "this process has no file descriptor left (ulimit -n)",
    errno.ENFILE: "the machine has no file descriptor left",
    errno.ETIMEDOUT: "the session's supervisor does not answer (was it stopped?)",
    errno.ENOMEM: "this process has no address space left (ulimit -v, vm.overcommit)",
}


def forked_child() -> SkateError:
    return EngineError(
        "this process was forked from one that runs skate: skate cannot be used in it. "
        "Start the work with f.remote(...), or call skate before forking."
    )


def shut_down() -> SkateError:
    return EngineDiedError("skate has been shut down in this process.")


def session_ended(reason: str) -> SkateError:
    """``reason``: what the supervisor said of it, if anything."""
    return EngineDiedError(
        reason
        or "the session has ended: its supervisor is gone, or skate.shutdown() was "
        "called. Results that were not fetched are lost; the next call of skate.init() "
        "starts a new session."
    )


def ref_of_an_ended_session(ref: object) -> SkateError:
    return EngineError(
        f"{ref!r} belongs to a session that has ended, and its value with it. Make it "
        "anew in this one."
    )


def get_timed_out(missing: int, total: int) -> SkateError:
    return GetTimeoutError(
        f"get() timed out: {missing} of {total} refs had no value yet. The tasks go "
        "on; call get() again, or with a longer timeout."
    )


def item_timed_out() -> SkateError:
    return GetTimeoutError(
        "the next item of the stream did not come in time. Its task goes on; ask "
        "again, or wait longer."
    )


def caller_gone() -> SkateError:
    return OwnerDiedError("the caller's process has ended.")


def resources_lack(error: int) -> SkateError:
    """``error``: an errno. What was asked for is still there, and can be had later."""
    what = _LACKING.get(error, os.strerror(error))
    return ResourceError(
        f"memory of another process cannot be reached now: {what}. Nothing is lost: "
        "close what is not needed, or raise the limit, and call again."
    )


def question_fails(error: int) -> SkateError:
    """``error``: an errno, for which the supervisor could not be asked, or answer."""
    what = _LACKING.get(error, os.strerror(error))
    return ResourceError(f"the session's supervisor cannot be asked now: {what}.")


def value_lost(error: int) -> SkateError:
    """``error``: an errno; ENOENT if its memory is gone."""
    if error == errno.ENOENT:
        return ObjectLostError("the value is gone with the process that owned it.")
    if error in _LACKING:
        return resources_lack(error)
    return ObjectLostError(
        "the value had been spilled to disk and cannot be read back: "
        f"{os.strerror(error)}. Run the task that made it again."
    )


def session_ended_while_waiting_for_room() -> SkateError:
    return EngineDiedError("the session has ended while a call waited for room.")


def no_room_for_code() -> SkateError:
    return ObjectStoreFullError(
        "no room for a function's code: the object store is full. Drop refs you no "
        "longer need, or start with a larger skate.init(object_store_memory=...)."
    )


def no_room_for_call() -> SkateError:
    return ObjectStoreFullError(
        "no room for the call: those that were sent before fill this process's memory "
        "for messages, since a process that they go to does not read (it may have been "
        "stopped). Make fewer calls at a time, or start with a larger "
        "skate.init(object_store_memory=...)."
    )


def store_full(
    size: int,
    used: int,
    limit: int,
    spilled: int,
    spill_limit: int,
    error: int,
    holders: list[tuple[int, int, str, int, bool]],
) -> SkateError:
    """No room for ``size`` bytes.

    ``error``: the errno that keeps somebody from spilling, or 0. ``holders``: bytes,
    blocks, what made them, the process, whether that is the driver; most first.
    """
    text = f"cannot store an object of {_mib(size)}: "
    advice = f"start with skate.init(object_store_memory={2 * (limit + size)})."
    if size > limit:
        return ObjectStoreFullError(
            f"{text}the whole store has {_mib(limit)}. Split it into smaller objects, "
            f"or {advice}"
        )
    text += f"{_mib(used)} of {_mib(limit)} are in use, "
    text += "all of it is still referenced, and "
    if error == errno.EDQUOT:
        text += _cannot_spill(spilled) + (
            f"the limit is {_mib(spill_limit)} (SKATE_SPILL_LIMIT)"
        )
    elif error in (errno.EAGAIN, errno.ENOMEM):
        text += f"{_cannot_spill(spilled)}there was no thread or no memory for it"
    elif error:
        text += f"{_cannot_spill(spilled)}{os.strerror(error)} (SKATE_SPILL_DIR)"
    elif spill_limit == 0:
        text += "spilling to disk is off (SKATE_SPILL_DIR)"
    else:
        text += "what is left is read by live arrays, or too small to be worth a file"
    text += ". The largest holders:"
    for held, blocks, what, pid, is_drivers in holders[:_LISTED_HOLDERS]:
        text += f"\n  {_mib(held)}"
        if not pid:
            text += f" of {what}"
            continue
        where = "the driver" if is_drivers else "a worker"
        text += f" in {blocks} block{'' if blocks == 1 else 's'}, made by "
        text += f"{what or 'several'} in {where}, process {pid}"
    text += (
        "\nDrop refs, and arrays that came from skate.get, that you no longer need, or "
        f"{advice}"
    )
    is_about_disk = error not in (0, errno.EAGAIN, errno.ENOMEM)
    return OutOfDiskError(text) if is_about_disk else ObjectStoreFullError(text)


def call_not_brought(error: int) -> ResourceError:
    """A call, or the error that it fails with, could not be brought to its process."""
    if error == errno.ENOSPC:
        return ResourceError(
            "the call does not fit into what is left of its caller's part of the "
            "object store. Let earlier calls end first, put large arguments with "
            "skate.put and pass the refs, or start with a larger "
            "skate.init(object_store_memory=...)."
        )
    return ResourceError(
        "the arguments of the task could not be read by its worker: "
        f"{os.strerror(error)} (ulimit -v, ulimit -n)."
    )


def actor_not_brought() -> ResourceError:
    """An actor's code, or its constructor's call, could not be brought to it."""
    return ResourceError(
        "the actor could not be constructed: its code and arguments do not fit into "
        "what is left of the object store. Let calls that wait end first, put large "
        "arguments with skate.put and pass the refs, or start with a larger "
        "skate.init(object_store_memory=...)."
    )


def too_many_dimensions(most: int, given: int) -> ValueError:
    return ValueError(
        f"skate.empty makes arrays of at most {most} dimensions, not {given}."
    )


def bad_shape(shape: object) -> ValueError:
    return ValueError(f"shape must be integers of zero or more, not {shape!r}.")


def array_beyond_memory(shape: object, dtype: object) -> ValueError:
    return ValueError(
        f"an array of shape {shape!r} and type {dtype!r} is too large for any memory: "
        "it has more than 2**63 bytes."
    )


def no_real_numbers() -> TypeError:
    return TypeError(
        "the core takes arrays of real numbers: float16, bfloat16, float32, float64, "
        "or integers of 8 to 64 bits"
    )


def mean_of_integers(dtype: str) -> TypeError:
    return TypeError(
        f"the mean of {dtype} would have to be rounded: use op='sum', or cast the "
        "array to a floating dtype first."
    )


def unknown_op(name: str) -> ValueError:
    return ValueError(f"unknown op {name!r}: use one of sum, mean, max, min.")


def no_operand(name: str) -> TypeError:
    return TypeError(
        f"{name} must be a C-contiguous, writable array in CPU memory; "
        "numpy.array(...) makes one of what is read-only (values from skate.get) or "
        "strided"
    )


def group_full(size: int, rank: int, area: int) -> MemoryError:
    return MemoryError(
        f"an array of {size} bytes does not fit in rank {rank}'s part of the group's "
        f"memory, {area} bytes: drop arrays of the group that you no longer need, or "
        "make the group with more memory"
    )


def no_rank(name: str, rank: int, world_size: int) -> ValueError:
    return ValueError(
        f"{name} {rank} is not a rank: the group has ranks 0 to {world_size - 1}"
    )


def unfit_sizes(
    world_size: int, part: int, part_dtype: str, whole: int, whole_dtype: str
) -> ValueError:
    return ValueError(
        f"x and out need one dtype, and one of them {world_size} (world_size) times "
        f"the elements of the other: they are {part} of {part_dtype} and {whole} of "
        f"{whole_dtype}"
    )


def _cannot_spill(spilled: int) -> str:
    return f"nothing more can be spilled to disk, where {_mib(spilled)} are already: "


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
