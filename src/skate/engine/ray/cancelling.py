"""Cancelling calls of Ray's without harm to the process that does it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray

_NO_ACTOR = "f" * 24  # how the id of a task's actor begins


def cancel(ref: ray.ObjectRef, *, force: bool, recursive: bool) -> bool:
    """Have Ray cancel the call of ``ref``; False if it cannot be: force, and an actor.

    A task is cancelled on the thread that takes in Ray's messages. On any other, Ray
    2.60 ends the process if the task's answer comes in at the same moment ("Tried to
    complete task that was not pending"): between two steps that the one thread takes
    for the answer, the other takes the task for one that never began.
    """
    if not ref.task_id().actor_id().hex().startswith(_NO_ACTOR):
        return _cancel(ref, force, recursive)
    there = ray.put(b"")  # the callback is for a value, and comes at once

    def run(_: Any, there: ray.ObjectRef = there) -> None:
        _cancel(ref, force, recursive)

    ray._private.worker.global_worker.core_worker.set_get_async_callback(there, run)
    return True


def _cancel(ref: ray.ObjectRef, force: bool, recursive: bool) -> bool:
    with suppress(ValueError):
        ray.cancel(ref, force=force, recursive=recursive)
        return True
    return False
