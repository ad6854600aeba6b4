"""Which GPUs there are, and who has which. Pure but for ``find_gpus``."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .._amounts import UNIT, units
from .._placement import group_of

MAX_GPUS = 1 << 16  # each has an id
_DRIVER_FILES = "/proc/driver/nvidia/gpus"  # one for each

Id = int | str


def find_gpus(num_gpus: float | None) -> tuple[float, tuple[Id, ...]]:
    """How many GPUs a session counts, and their ids.

    Those that ``CUDA_VISIBLE_DEVICES`` names, as strings; without it, what the driver
    of the hardware has, by number. ``num_gpus`` counts as many, even if there are none.

    Raises:
        ValueError: ``CUDA_VISIBLE_DEVICES`` names fewer, or they are more than
            ``MAX_GPUS``.
    """
    ids: tuple[Id, ...]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [word.strip() for word in visible.split(",")]
        ids = tuple(word for word in named if word not in ("", "-1", "NoDevFiles"))
        if num_gpus is not None and num_gpus > len(ids):
            raise ValueError(
                f"num_gpus={num_gpus:g}, and CUDA_VISIBLE_DEVICES={visible!r} names "
                f"{len(ids)}. Ask for fewer, or change the variable."
            )
    elif num_gpus is not None:
        if num_gpus > MAX_GPUS:
            raise ValueError(f"num_gpus must be at most {MAX_GPUS}, not {num_gpus:g}.")
        ids = tuple(range(math.ceil(num_gpus)))
    else:
        ids = tuple(range(_count_gpus()))
    if num_gpus is None:
        return float(len(ids)), ids
    return num_gpus, ids[: math.ceil(num_gpus)]


def _count_gpus() -> int:
    try:
        return len(os.listdir(_DRIVER_FILES))
    except OSError:
        return 0


class Share(NamedTuple):
    """GPUs, or parts of them, that a task has."""

    pool: str  # of the session, or of a bundle of a placement group
    units: tuple[tuple[Id, int], ...]

    @property
    def ids(self) -> tuple[Id, ...]:
        return tuple(id_ for id_, _ in self.units)


NO_GPUS = Share("", ())
_SESSION = ""


class Gpus:
    """Hands out GPUs: whole ones, and shares of one that are packed together."""

    def __init__(self, ids: Sequence[Id], total: float) -> None:
        left = units(total)
        free: dict[Id, int] = {}
        for id_ in ids:
            free[id_] = min(left, UNIT)
            left -= free[id_]
        self._free = {_SESSION: free}  # by pool
        self._set_aside: dict[str, list[Share]] = {}  # by placement group

    def find(self, resources: Mapping[str, float]) -> Share | None:
        """What a task of these resources would get; None: it must wait."""
        amount, pools = self._wanted(resources)
        wanted = units(amount)
        if wanted == 0:
            return NO_GPUS
        for pool in pools:
            share = self._choose(pool, wanted)
            if share is not None:
                return share
        return None

    def take(self, share: Share) -> None:
        for id_, part in share.units:
            self._free[share.pool][id_] -= part

    def give(self, share: Share) -> None:
        pool = self._free.get(share.pool)
        if pool is not None:  # else of a placement group that was removed
            for id_, part in share.units:
                pool[id_] += part

    def can_open(self, bundles: Sequence[Mapping[str, float]]) -> bool:
        """Whether a placement group of these bundles would get its GPUs."""
        shares = self._for_bundles(bundles)
        for share in shares or ():
            self.give(share)
        return shares is not None

    def open(self, group: str, bundles: Sequence[Mapping[str, float]]) -> None:
        """Set GPUs aside for a placement group; ``can_open`` has said that it may."""
        shares = self._for_bundles(bundles)
        assert shares is not None
        self._set_aside[group] = shares
        for index, share in enumerate(shares):
            self._free[f"{index}_{group}"] = dict(share.units)

    def close(self, group: str) -> None:
        for index, share in enumerate(self._set_aside.pop(group, ())):
            del self._free[f"{index}_{group}"]
            self.give(share)

    def _for_bundles(
        self, bundles: Sequence[Mapping[str, float]]
    ) -> list[Share] | None:
        shares: list[Share] = []
        for bundle in bundles:
            share = self.find({"GPU": bundle.get("GPU", 0.0)})
            if share is None:
                for taken in shares:
                    self.give(taken)
                return None
            self.take(share)
            shares.append(share)
        return shares

    def _wanted(self, resources: Mapping[str, float]) -> tuple[float, list[str]]:
        """How much, and the pools that it may come from."""
        group = group_of(resources)
        if group is None:
            return resources.get("GPU", 0.0), [_SESSION]
        amount = resources.get(f"GPU_group_{group}", 0.0)
        pools = [f"{i}_{group}" for i in range(len(self._set_aside.get(group, ())))]
        exact = [pool for pool in pools if f"GPU_group_{pool}" in resources]
        return amount, exact or pools

    def _choose(self, pool: str, wanted: int) -> Share | None:
        free = self._free[pool]
        number, part = divmod(wanted, UNIT)
        whole = [id_ for id_, left in free.items() if left == UNIT][:number]
        if len(whole) < number:
            return None
        chosen = [(id_, UNIT) for id_ in whole]
        if part:
            # The fullest that has room: whole ones are left for those who need them.
            rooms = [
                (left, place, id_)
                for place, (id_, left) in enumerate(free.items())
                if left >= part and id_ not in whole
            ]
            if not rooms:
                return None
            chosen.append((min(rooms, key=lambda room: room[:2])[2], part))
        return Share(pool, tuple(chosen))
