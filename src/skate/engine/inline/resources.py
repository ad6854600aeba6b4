"""Counters of CPUs, GPUs and custom resources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..._amounts import UNIT, in_amounts, in_units
from ..._placement import lends, set_aside, total
from ...exceptions import ResourceError
from ..gpus import NO_GPUS, Gpus, Share

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..._options import ActorOptions, TaskOptions
    from ..protocol import EngineConfig


class Resources:
    """What the session has in all, and what of it is free. Not thread-safe."""

    def __init__(self, config: EngineConfig) -> None:
        amounts = {"CPU": config.num_cpus, **config.resources}
        if config.num_gpus:
            amounts["GPU"] = config.num_gpus
        self._total = in_units(amounts)
        self._free = dict(self._total)
        self.gpus = Gpus(config.gpus, config.num_gpus)

    def demand(self, name: str, options: TaskOptions | ActorOptions) -> dict[str, int]:
        """What ``options`` ask for.

        Raises:
            ResourceError: the session does not have it, even when all is free.
        """
        amounts = {
            "CPU": options.num_cpus,
            "GPU": options.num_gpus,
            **options.resources,
        }
        wanted = {key: float(n) for key, n in amounts.items() if n}
        if options.placement is not None:
            return in_units(options.placement.place(name, wanted))
        demand = in_units(wanted)
        for key, amount in demand.items():
            if amount > self._total.get(key, 0):
                raise ResourceError(
                    f"{name} asks for {amounts[key]:g} {key}, which can never be: this "
                    f"session has {self.describe(self._total)}. Ask for less, or start "
                    f"with {_how_to_get(key, amounts[key])}."
                )
        return demand

    def fits(self, demand: Mapping[str, int]) -> bool:
        return self._has(demand) and self.gpus.find(in_amounts(demand)) is not None

    def fits_group(self, bundles: Sequence[Mapping[str, float]]) -> bool:
        return self._has(in_units(total(bundles))) and self.gpus.can_open(bundles)

    def _has(self, demand: Mapping[str, int]) -> bool:
        return all(self._free.get(key, 0) >= n for key, n in demand.items())

    def take(self, demand: Mapping[str, int]) -> None:
        for key, amount in demand.items():
            if key in self._free:  # else of a placement group that was removed
                self._free[key] -= amount

    def give(self, demand: Mapping[str, int]) -> None:
        for key, amount in demand.items():
            if key in self._free:  # else of a placement group that was removed
                self._free[key] += amount

    def create_group(self, group: str, bundles: Sequence[Mapping[str, float]]) -> None:
        """Set the sum of ``bundles``, which fits, aside under names of the group's."""
        self.gpus.open(group, bundles)
        self.take(in_units(total(bundles)))
        self._free.update(in_units(set_aside(group, bundles)))

    def remove_group(self, group: str, bundles: Sequence[Mapping[str, float]]) -> None:
        for key in set_aside(group, bundles):
            del self._free[key]
        self.gpus.close(group)
        self.give(in_units(total(bundles)))

    def total(self) -> dict[str, float]:
        return in_amounts(self._total)

    def available(self) -> dict[str, float]:
        # A task that was blocked takes its CPU back at once, so there may be none.
        return {key: max(0, self._free[key]) / UNIT for key in self._total}

    def describe_free(self) -> str:
        return self.describe({key: max(0, n) for key, n in self._free.items()})

    @staticmethod
    def describe(amounts: Mapping[str, int]) -> str:
        return ", ".join(f"{n / UNIT:g} {key}" for key, n in amounts.items())


def _how_to_get(key: str, amount: float) -> str:
    if key in ("CPU", "GPU"):
        return f"skate.init(num_{key.lower()}s={amount:g})"
    return f"skate.init(resources={{{key!r}: {amount:g}}})"


class Grant:
    """Resources that a task, or an actor, holds. A blocked one lends its CPUs."""

    def __init__(self, resources: Resources, demand: Mapping[str, int]) -> None:
        self._resources = resources
        self._demand = demand
        self._cpus = {key: n for key, n in demand.items() if lends(key)}
        self.gpus: Share = NO_GPUS

    def amounts(self) -> dict[str, float]:
        return in_amounts(self._demand)

    def take(self) -> None:
        self._resources.take(self._demand)
        self.gpus = self._resources.gpus.find(self.amounts()) or NO_GPUS
        self._resources.gpus.take(self.gpus)

    def give(self) -> None:
        self._resources.give(self._demand)
        self._resources.gpus.give(self.gpus)
        self.gpus = NO_GPUS

    def lend(self) -> None:
        self._resources.give(self._cpus)

    def reclaim(self) -> None:
        self._resources.take(self._cpus)
