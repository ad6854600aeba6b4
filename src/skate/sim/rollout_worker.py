"""The actor that steps environments, and asks the policy for their actions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol

import numpy as np

import skate

from .batch import Batch, Place, make_batch
from .deadline import StepDeadline
from .env import EnvMaker
from .trajectory import Array, Record, Trajectory


class ServedPolicy(Protocol):
    """A policy that lives elsewhere, such as a ``skate.serve`` deployment."""

    def evaluate(self, states: Array, *, return_version: bool) -> tuple[Any, int]: ...


# From observations (N, ...) to actions (N, ...), or to a dictionary of arrays with
# "actions" among them; the others are kept in ``Trajectory.extras``.
Policy = Callable[[Array], Any] | ServedPolicy


@dataclass(frozen=True)
class WorkerOptions:
    """What every worker of one ``rollouts`` is told."""

    env: EnvMaker
    num_envs: int | None
    rollout_length: int | None
    seed: int | Sequence[int]
    step_timeout: float | None
    replaces: bool
    preemptive: bool


@dataclass
class _Row:
    """One step of whole-episode rollouts, until its episodes have ended."""

    record: Record
    outputs: dict[str, Array]
    version: int


class RolloutWorker:
    """An actor with N environments, stepped together, asking one policy."""

    def __init__(self, options: WorkerOptions, worker: int, life: int) -> None:
        self._options = options
        deadline = StepDeadline(options.step_timeout, preemptive=options.preemptive)
        self._place = Place(worker, options.seed, life, deadline, options.replaces)
        self._rows: list[_Row] = []
        self._expected: dict[str, tuple[tuple[int, ...], Any]] = {}

    def start(self, policy: Policy, version: int) -> None:
        """Make the environments; raises what their constructor does."""
        self.set_policy(policy, version)
        self._batch: Batch = make_batch(
            self._options.env, self._options.num_envs, self._place
        )
        self._clip = _clipping(self._batch.action_space)
        self._observations = self._batch.reset()
        if self._observations.dtype.hasobject:
            raise self._place.error(
                "the environment's observations are no arrays of numbers. Flatten "
                "them: gymnasium.wrappers.FlattenObservation."
            )
        self._begins = [0] * self._batch.num_columns  # of each episode, in _rows
        self._check_all(self._observations[None], first=0)

    def set_policy(self, policy: Policy, version: int) -> None:
        """Of the rollouts that begin from now on."""
        self._policy = policy
        self._version = version

    def work(self) -> list[Trajectory]:
        """The next rollout, or the episodes that end next."""
        length = self._options.rollout_length
        return self._episodes() if length is None else [self._rollout(length)]

    def replaced(self) -> int:
        """How many environments took the place of others."""
        return self._place.replaced

    def _rollout(self, length: int) -> Trajectory:
        record = self._new_record(length)
        began = time.perf_counter()
        policy_s = 0.0
        for t in range(length):
            policy_s += self._advance(record, t)
        self._observations = record.observations[length].copy()
        total_s = time.perf_counter() - began
        self._check_record(record)
        batch = self._batch
        worker = self._place.worker
        return record.trajectory(worker, batch.agents, total_s - policy_s, policy_s)

    def _new_record(self, length: int) -> Record:
        observations = skate.empty(
            (length + 1, *self._observations.shape), self._observations.dtype
        )
        observations[0] = self._observations
        return Record(length, self._batch.num_columns, observations)

    def _advance(self, record: Record, t: int) -> float:
        """One step into row ``t``; returns the seconds that the policy took."""
        asked = time.perf_counter()
        outputs, version = self._act(record.observations[t])
        policy_s = time.perf_counter() - asked
        record.policy(t, outputs, version)
        self._batch.step(self._clip(outputs["actions"]), record, t)
        self._place.step += 1
        return policy_s

    # whole episodes -------------------------------------------------------------------

    def _episodes(self) -> list[Trajectory]:
        """Step until an episode ends; all that ended in that step."""
        began, policy_s = time.perf_counter(), 0.0
        while True:
            record = self._new_record(1)
            policy_s += self._advance(record, 0)
            outputs = {name: array[0] for name, array in record.extras.items()}
            version = int(record.policy_versions[0])
            self._rows.append(_Row(record, outputs, version))
            self._observations = record.observations[1].copy()
            ended = np.flatnonzero(record.terminated[0] | record.truncated[0])
            if not len(ended):
                continue
            self._check_record(record)
            total_s = time.perf_counter() - began
            shares = [(total_s - policy_s) / len(ended), policy_s / len(ended)]
            episodes = [
                self._episode(int(column), record.final_observations[k], shares)
                for k, column in enumerate(ended)
            ]
            self._drop_rows()
            return episodes

    def _episode(self, column: int, final: Any, shares: list[float]) -> Trajectory:
        rows = self._rows[self._begins[column] :]
        self._begins[column] = len(self._rows)
        one = Record(len(rows), 1, _observations_of(rows, column, final))
        for t, row in enumerate(rows):
            record = row.record
            one.policy(
                t,
                {name: a[column : column + 1] for name, a in row.outputs.items()},
                row.version,
            )
            one.rewards[t, 0] = record.rewards[0, column]
            one.terminated[t, 0] = record.terminated[0, column]
            one.truncated[t, 0] = record.truncated[0, column]
            one.valid[t, 0] = record.valid[0, column]
        one.final_observations.append(final)
        one.episode_returns.append(one.rewards.sum())
        agents = self._batch.agents[column : column + 1]
        made = one.trajectory(self._place.worker, agents, *shares)
        return replace(made, env_index=self._batch.column_index(column))

    def _drop_rows(self) -> None:
        first = min(self._begins)
        del self._rows[:first]
        self._begins = [begin - first for begin in self._begins]

    # the policy, and what it and the environments may give ----------------------------

    def _act(self, observations: Array) -> tuple[dict[str, Array], int]:
        evaluate = getattr(self._policy, "evaluate", None)
        if evaluate is not None:
            outputs, version = evaluate(observations, return_version=True)
        else:
            outputs, version = self._policy(observations), self._version  # type: ignore[operator]
        if not isinstance(outputs, dict):
            outputs = {"actions": np.asarray(outputs)}
        for name, array in outputs.items():
            expected = self._expected.get(name)
            if expected is None or expected != (array.shape, array.dtype):
                self._check_output(name, array, expected)
        actions = outputs.get("actions")
        if actions is None:
            raise self._place.error(
                f"the policy returned {sorted(outputs)}, without 'actions'"
            )
        if actions.dtype.kind == "f" and not np.isfinite(actions).all():
            first = int(np.argwhere(~np.isfinite(actions))[0][0])
            self._check_all(observations[None], first=self._place.step - 1)
            raise self._place.error(
                "the policy returned an action that is not finite: "
                f"{actions[first]!r} for the observation {observations[first]!r}",
                self._batch.column_index(first),
            )
        return outputs, version

    def _check_output(self, name: str, array: Any, expected: Any) -> None:
        n = self._batch.num_columns
        space = self._batch.action_space
        if not isinstance(array, np.ndarray) or array.shape[:1] != (n,):
            raise self._place.error(
                f"the policy returned {name} of shape {np.shape(array)} for {n} "
                f"observations; the first axis must be {n} long"
            )
        if expected is not None:
            shape, dtype = expected
            raise self._place.error(
                f"the policy returned {name} of shape {array.shape} and dtype "
                f"{array.dtype}; they had {shape} and {dtype} before"
            )
        wanted = getattr(space, "shape", None)
        if name == "actions" and wanted is not None:
            integers = np.dtype(space.dtype or float).kind in "iu"
            if array.shape[1:] != wanted:
                raise self._place.error(
                    f"the policy returned actions of shape {array.shape}; "
                    f"{space} needs {(n, *wanted)}"
                )
            if integers and array.dtype.kind not in "iu":
                raise self._place.error(
                    f"the policy returned actions of dtype {array.dtype}; {space} "
                    "needs integers"
                )
        self._expected[name] = (array.shape, array.dtype)

    def _check_record(self, record: Record) -> None:
        """All at once, after the steps: a check a step costs as much as a step."""
        first = self._place.step - record.length
        self._check_finite(record.rewards, "reward", first)
        # A row of observations came from the step before it.
        self._check_all(record.observations, first=first - 1)
        if record.final_observations:
            finals = np.zeros_like(record.observations[1:])
            ended = record.terminated | record.truncated
            finals[...] = record.observations[:-1]  # known to be good
            finals[ended] = record.final_observations
            self._check_all(finals, first=first)

    def _check_all(self, rows: Array, *, first: int) -> None:
        """Raise unless ``rows``, ``(t, N, ...)`` of steps ``first + t``, may be."""
        self._check_finite(rows, "observation", first)
        low, high = self._batch.observation_bounds
        if low is None or high is None:
            return
        outside = (rows < low) | (rows > high)
        if outside.any():
            self._refuse(rows, outside, first, "an observation outside of its space")

    def _check_finite(self, rows: Array, what: str, first: int) -> None:
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            self._refuse(
                rows, ~np.isfinite(rows), first, f"a {what} that is not finite"
            )

    def _refuse(self, rows: Array, wrong: Array, first: int, what: str) -> NoReturn:
        t, n, *_ = np.argwhere(wrong)[0]
        self._place.step = max(0, first + int(t))
        raise self._place.error(
            f"the environment gave {what}: {rows[t, n]!r}",
            self._batch.column_index(int(n)),
        )


def _observations_of(rows: list[_Row], column: int, final: Any) -> Array:
    """``(T + 1, 1, ...)``: the last row is the last of the episode."""
    like = rows[0].record.observations
    observations = skate.empty((len(rows) + 1, 1, *like.shape[2:]), like.dtype)
    for t, row in enumerate(rows):
        observations[t, 0] = row.record.observations[0, column]
    observations[len(rows), 0] = final
    return observations


def _clipping(space: Any) -> Callable[[Array], Array]:
    """Keeps actions within the bounds of ``space``, if it has any."""
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if low is None or high is None:
        return lambda actions: actions
    return lambda actions: np.clip(actions, low, high)
