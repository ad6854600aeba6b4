"""``sim.rollouts``: many environments in many workers, asking one policy."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np

import skate
from skate.exceptions import ActorError, TaskError

from .env import EnvMaker, check_id
from .rollout_worker import Policy, RolloutWorker, WorkerOptions
from .trajectory import Trajectory

_MOST_DEATHS = 3  # of a worker, in a row, without a rollout in between


class _Worker(NamedTuple):
    number: int
    life: int
    handle: Any  # of an actor class made at run time


class Rollouts:
    """Trajectories from all workers, as they finish; endless. Made by `rollouts`."""

    def __init__(
        self,
        options: WorkerOptions,
        policy: Policy,
        numbers: Sequence[int],
        max_ahead: int,
    ) -> None:
        self._options = options
        self._policy: Any = skate.put(policy)
        self._is_served = hasattr(policy, "evaluate")
        self._version = 0
        self._actor_class: Any = skate.remote(RolloutWorker)
        self._ready: Any = skate.as_completed()
        self._in_flight: dict[Any, _Worker] = {}
        self._made: deque[Trajectory] = deque()
        self._deaths = dict.fromkeys(numbers, 0)
        self._restarts = self._replaced = 0
        self._counts = dict.fromkeys(("rollouts", "steps", "episodes"), 0)
        self._seconds = dict.fromkeys(("simulate_s", "policy_s"), 0.0)
        self._lags = [0, 0]  # their sum, and the largest
        self._began = perf_counter()
        self._workers = {number: self._create(number, 0) for number in numbers}
        try:
            skate.get([self._start(worker) for worker in self._workers.values()])
        except BaseException:
            self.close()
            raise
        for _ in range(max_ahead):
            for worker in self._workers.values():
                self._begin(worker)

    def __iter__(self) -> Iterator[Trajectory]:
        return self

    def __next__(self) -> Trajectory:
        """The next finished one; its worker begins another at once.

        A worker whose process has died, or was ended because an environment hung, is
        replaced by one with new episodes; the others go on.

        Raises:
            RolloutError: an environment or the policy gave what it must not.
            ActorDiedError: a worker died three times in a row.
            Exception: what the policy raised, as a TaskError too.
        """
        while not self._made:
            # One at a time: its worker goes on when it is taken, and not before.
            self._take(next(self._ready))
        return self._counted(self._made.popleft())

    def update(self, policy: Policy) -> int:
        """Let workers call ``policy`` from their next rollout on; its version.

        For policies that are functions; one that is served is updated where it is.
        """
        if self._is_served:
            raise TypeError(
                "the policy is served: update the deployment, and rollouts follow."
            )
        self._version += 1
        self._policy = skate.put(policy)
        for worker in self._workers.values():
            worker.handle.set_policy.remote(self._policy, self._version)
        return self._version

    def stats(self) -> dict[str, float]:
        """Since the start, of what was taken.

        ``rollouts``, ``steps`` of all environments, ``episodes`` that ended,
        ``restarts`` of workers, ``simulate_s`` and ``policy_s`` over all workers,
        ``wall_s``, ``lag_mean`` and ``lag_max`` in versions of the policy.
        """
        rollouts = self._counts["rollouts"]
        return {
            **self._counts,
            **self._seconds,
            "restarts": self._restarts,
            "wall_s": perf_counter() - self._began,
            "lag_mean": self._lags[0] / rollouts if rollouts else 0.0,
            "lag_max": self._lags[1],
        }

    def replaced_envs(self) -> int:
        """Environments that took the place of one that hung or raised."""
        counts = [w.handle.replaced.remote() for w in self._workers.values()]
        return sum(skate.get(counts))

    def close(self) -> None:
        """End the workers. May be called twice."""
        self._ready.close()
        self._in_flight.clear()
        self._made.clear()
        self._policy = None
        workers, self._workers = list(self._workers.values()), {}
        for worker in workers:
            skate.kill(worker.handle)

    def __enter__(self) -> Rollouts:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _create(self, number: int, life: int) -> _Worker:
        handle = self._actor_class.remote(self._options, number, life)
        return _Worker(number, life, handle)

    def _start(self, worker: _Worker) -> Any:
        return worker.handle.start.remote(self._policy, self._version)

    def _begin(self, worker: _Worker) -> None:
        ref = worker.handle.work.remote()
        self._in_flight[ref] = worker
        self._ready.add(ref)

    def _take(self, ref: Any) -> None:
        worker = self._in_flight.pop(ref)
        try:
            made = skate.get(ref)
        except ActorError as error:
            # What user code raised, a served policy's death too, is a TaskError.
            if isinstance(error, TaskError):
                raise
            self._replace(worker, error)
        else:
            self._deaths[worker.number] = 0
            self._made.extend(made)
        self._begin(self._workers[worker.number])

    def _replace(self, worker: _Worker, error: ActorError) -> None:
        """Another worker in the place of one that died; the first to see it does it."""
        if self._workers[worker.number] is not worker:
            return
        self._deaths[worker.number] += 1
        if self._deaths[worker.number] >= _MOST_DEATHS:
            raise error
        self._restarts += 1
        another = self._create(worker.number, worker.life + 1)
        self._workers[worker.number] = another
        # Its rollout begins after it, in order; a failure to start is raised there.
        skate.get(self._start(another))

    def _counted(self, trajectory: Trajectory) -> Trajectory:
        versions = trajectory.policy_versions
        self._version = max(self._version, int(versions.max()))
        lag = self._version - int(versions.min())
        counts = self._counts
        counts["rollouts"] += 1
        counts["steps"] += int(np.count_nonzero(trajectory.valid))
        counts["episodes"] += len(trajectory.episode_returns)
        self._seconds["simulate_s"] += trajectory.simulate_s
        self._seconds["policy_s"] += trajectory.policy_s
        self._lags = [self._lags[0] + lag, max(self._lags[1], lag)]
        return replace(trajectory, lag=lag)


def rollouts(
    env: EnvMaker,
    policy: Policy,
    *,
    num_workers: int,
    num_envs_per_worker: int | None = None,
    rollout_length: int | None,
    max_ahead: int = 1,
    seed: int | Sequence[int] = 0,
    first_worker: int = 0,
    step_timeout: float | None = None,
    on_error: Literal["raise", "replace"] = "raise",
) -> Rollouts:
    """Let ``policy`` act in ``num_workers * num_envs_per_worker`` environments.

    Args:
        env: a gymnasium id, or a function that makes an environment: one of
            gymnasium's or alike, a gymnasium vector environment, or a PettingZoo
            parallel environment, whose agents all have the same spaces.
        policy: a function that the workers call, or a served policy that they all
            ask, all observations of a worker in one request. The versions in its
            answers are recorded step by step; those of functions count the calls of
            :meth:`Rollouts.update`.
        num_envs_per_worker: default 1, or those of a vector environment.
        rollout_length: steps of each environment in one trajectory, T. None: whole
            episodes, each as its own trajectory as it ends; short ones come first.
        max_ahead: trajectories of a worker under way or not yet taken. With 1, a
            worker begins the next when you take its last: it simulates while you
            use that one, and then waits for you.
        seed: with the place of an environment, decides its episodes.
        first_worker: the number of the first worker, when several sets share a seed.
        step_timeout: seconds that one step of an environment (a vector environment
            steps as one) may take. It is then replaced by a new one, with that row of
            the trajectory not ``valid``; where nothing but the end of the process
            helps, a second later its worker is replaced, with new episodes. The inline
            engine replaces it once the step has returned.
        on_error: when an environment's ``step`` raises: ``"raise"`` it, as a
            :class:`RolloutError`, or ``"replace"`` the environment.

    Returns:
        When every worker has made its environments: iterate it.

    Raises:
        ValueError: a number is out of range, or gymnasium has no such environment.
        ImportError: ``env`` is an id and gymnasium is not installed.
        Exception: what the constructor of an environment raised, as a TaskError too.
    """
    numbers: list[tuple[str, Any]] = [
        ("num_workers", num_workers),
        ("num_envs_per_worker", num_envs_per_worker),
        ("rollout_length", rollout_length),
        ("max_ahead", max_ahead),
    ]
    for name, number in numbers:
        may_be_none = name in ("num_envs_per_worker", "rollout_length")
        if not (number is None and may_be_none) and number < 1:
            raise ValueError(f"{name}={number!r}; expected at least 1.")
    if step_timeout is not None and not step_timeout > 0:
        raise ValueError(f"step_timeout={step_timeout!r}; expected seconds above 0.")
    if on_error not in ("raise", "replace"):
        raise ValueError(f'on_error={on_error!r}; expected "raise" or "replace".')
    if not callable(policy) and not hasattr(policy, "evaluate"):
        raise TypeError(f"policy must be a function or a deployment, not {policy!r}.")
    check_id(env)
    options = WorkerOptions(
        env=env,
        num_envs=num_envs_per_worker,
        rollout_length=rollout_length,
        seed=seed,
        step_timeout=step_timeout,
        replaces=on_error == "replace",
        preemptive=skate.init(ignore_reinit_error=True).engine != "inline",
    )
    places = range(first_worker, first_worker + num_workers)
    return Rollouts(options, policy, places, max_ahead)
