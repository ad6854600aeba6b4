"""The actor that numbers the updates of a deployment, and knows the newest weights."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import skate

from ..exceptions import ActorDiedError
from .errors import UnknownModelError
from .served import MakeModel


@dataclass
class Newest:
    """What a replica needs to have a model as it is now."""

    make: MakeModel
    args: tuple[Any, ...]
    version: int = 0
    weights: skate.ObjectRef[Any] | None = None  # None: those of the constructor


class Keeper:
    """Runs as an async actor. A replica that starts again asks it for the models.

    It holds no handles of replicas, which hold one of it: neither would ever end.
    """

    def __init__(self, models: dict[str, tuple[MakeModel, tuple[Any, ...]]]) -> None:
        self._models = {
            model_id: Newest(make, args) for model_id, (make, args) in models.items()
        }
        self._one_at_a_time = asyncio.Lock()

    async def models(self) -> dict[str, Newest]:
        return self._models

    async def versions(self) -> dict[str, int]:
        return {model_id: newest.version for model_id, newest in self._models.items()}

    async def update(
        self, replicas: list[Any], model_id: str, weights: list[skate.ObjectRef[Any]]
    ) -> int:
        """Give every replica the weights; returns their version."""
        async with self._one_at_a_time:
            newest = self._models.get(model_id)
            if newest is None:
                raise unknown_model(model_id, list(self._models))
            (ref,) = weights
            version = newest.version + 1
            # One alone at first: if its model refuses, nothing has changed anywhere.
            await _first_alive(replicas, "update", model_id, version, ref)
            newest.version, newest.weights = version, ref
            # The first once more: it may have started again, with the weights before.
            await _all_alive(replicas, "update", model_id, version, ref)
            return version

    async def load(
        self,
        replicas: list[Any],
        model_id: str,
        make: MakeModel,
        args: tuple[Any, ...],
    ) -> int:
        """Put a new model in the place of the old one, or beside the others."""
        async with self._one_at_a_time:
            before = self._models.get(model_id)
            version = 0 if before is None else before.version + 1
            await _first_alive(replicas, "load", model_id, version, make, args)
            self._models[model_id] = Newest(make, args, version)
            await _all_alive(replicas, "load", model_id, version, make, args)
            return version

    async def unload(self, replicas: list[Any], model_id: str) -> None:
        async with self._one_at_a_time:
            if self._models.pop(model_id, None) is None:
                raise unknown_model(model_id, list(self._models))
            await _all_alive(replicas, "unload", model_id)


def unknown_model(model_id: str, known: Sequence[str]) -> UnknownModelError:
    there_are = ", ".join(repr(name) for name in known if name) or "none"
    asked = f"no model {model_id!r}" if model_id else "no model without a model_id"
    return UnknownModelError(f"{asked} in this deployment; model_ids: {there_are}.")


async def _first_alive(replicas: list[Any], method: str, *args: Any) -> None:
    for place, replica in enumerate(replicas):
        try:
            await _call(replica, method, args)
            return
        except ActorDiedError:
            if place == len(replicas) - 1:
                raise


async def _all_alive(replicas: list[Any], method: str, *args: Any) -> None:
    calls = [_call(replica, method, args) for replica in replicas]
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        # A replica that is gone for good cannot lag behind.
        if isinstance(outcome, BaseException) and not isinstance(
            outcome, ActorDiedError
        ):
            raise outcome


async def _call(replica: Any, method: str, args: tuple[Any, ...]) -> Any:
    # Again after a restart: all of these may be done twice.
    return await getattr(replica, method).options(max_task_retries=-1).remote(*args)
