"""``sim.VectorEnv``: a gymnasium vector environment over worker processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

import skate
from skate.exceptions import ActorError, CollectiveTimeoutError, GetTimeoutError

from .vector_board import Crew, Outcome, can_share, make_plan
from .vector_worker import (
    EnvWorker,
    Share,
    face,
    join,
    join_infos,
    reset,
    rows,
)

# In a row, after which steps are calls: results with infos cost a call in any case.
_ODD_ROUNDS = 16
CLOSE_S = 1.0  # for environments to close themselves, before their workers end


class VectorEnv(gymnasium.vector.VectorEnv):
    """``num_envs`` environments, shared equally by ``num_workers`` processes.

    A step is one hand-over, however many environments and workers there are: where
    processes share memory and spaces are plain arrays, the caller wakes all workers at
    once, and the last of them wakes the caller; else each gets a call of its own. One
    of the processes is the caller's, unless told otherwise: it steps the first share
    itself while the workers step theirs.

    A worker that dies, or takes longer than ``step_timeout``, is replaced alone. Its
    environments count as truncated, their last observations are repeated, and
    ``info["replaced"]`` is True for them; new episodes follow as after any other.

    Args:
        env: a gymnasium id, or a function that makes one environment.
        num_envs: how many.
        num_workers: processes, the caller's included if it takes part; default one a
            CPU.
        batch_size: of :meth:`recv`; default all. A multiple of the environments a
            worker has.
        autoreset_mode: gymnasium's: when an environment that ended is reset.
        vectorized: ``env`` is an id with a vector environment of its own, or a
            function of a number that makes one with so many environments.
        in_caller: whether the caller steps a share; default: if there is neither a
            ``step_timeout`` nor a ``batch_size``. An environment that crashes or hangs
            there takes the caller with it.
        step_timeout: seconds for a step, or a reset, of one worker.

    Raises:
        ValueError: a number is out of range, or these do not go together.
        Exception: what the constructor of an environment raised.
    """

    def __init__(
        self,
        env: str | Callable[..., Any],
        num_envs: int,
        *,
        num_workers: int | None = None,
        batch_size: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        vectorized: bool = False,
        in_caller: bool | None = None,
        step_timeout: float | None = None,
    ) -> None:
        self.closed = True  # until it is whole: a failed constructor is closed, too
        self._crew: Crew | None = None  # workers that step in rounds, once they do
        self._odd_rounds = 0  # in a row
        self._stored_in = 0  # the round whose observations are the latest; 0: none
        super().__init__()
        if num_workers is None:
            num_workers = max(1, int(skate.cluster_resources().get("CPU", 1)))
            num_workers = min(num_workers, num_envs)
        if in_caller is None:
            in_caller = step_timeout is None and batch_size in (None, num_envs)
        self.num_envs = num_envs
        self._check_numbers(num_workers, batch_size, step_timeout, in_caller)
        self._step_timeout = step_timeout
        mode = AutoresetMode(autoreset_mode)
        self._shares = _shares(env, num_envs, num_workers, mode, vectorized)
        self._here: gymnasium.vector.VectorEnv | None = None
        self._actor_class: Any = skate.remote(EnvWorker).options(num_cpus=0)
        self._workers: list[Any] = []  # handles, by share; None for the caller's
        try:
            # The first alone: if its constructor raises, that is told once.
            if in_caller:
                self._here = self._shares[0].make()
                self._workers.append(None)
                found = face(self._here)
            else:
                self._workers.append(self._actor_class.remote(self._shares[0]))
                found = skate.get(self._workers[0].face.remote())
            self._workers += [self._actor_class.remote(s) for s in self._shares[1:]]
            skate.get([w.face.remote() for w in self._workers[1:]])
        except BaseException:
            self._end()
            raise
        self.metadata = found["metadata"]
        if vectorized:  # its author decided
            mode = AutoresetMode(self.metadata.get("autoreset_mode", mode))
            self._shares = [replace(s, autoreset_mode=mode) for s in self._shares]
        self.autoreset_mode = self.metadata["autoreset_mode"] = mode
        self.render_mode = found["render_mode"]
        self.single_observation_space = found["single_observation_space"]
        self.single_action_space = found["single_action_space"]
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        size = self._shares[0].size
        self._per_recv = (batch_size or num_envs) // size if batch_size else num_workers
        if batch_size and (batch_size % size or num_envs % num_workers):
            self._end()
            raise ValueError(
                f"batch_size={batch_size!r} with {num_envs} environments on "
                f"{num_workers} workers: workers need equal shares, and a batch whole "
                "ones."
            )
        self._seed: int | None = None
        self._replacements = 0
        self._shares_memory = num_workers > in_caller and can_share(
            skate.init(ignore_reinit_error=True).engine,
            self.single_observation_space,
            self.single_action_space,
        )
        self._in_flight: dict[Any, int] = {}  # ref -> share
        self._ready: dict[int, Outcome] = {}  # share -> outcome, known before it ran
        self._latest: list[Any] = [None] * num_workers  # observations, by share
        self.closed = False

    # gymnasium's interface ------------------------------------------------------------

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those of ``options["reset_mask"]``.

        Environment ``i`` gets ``seed + i``, or ``seed[i]``.
        """
        self._abandon()
        seeds = self._seeds(seed)
        options = dict(options or {})
        mask = options.pop("reset_mask", None)
        if mask is not None:
            mask = self._checked_mask(mask)
        calls: dict[int, tuple[Any, ...]] = {}
        outcomes: dict[int, Outcome] = {}
        for i, share in enumerate(self._shares):
            told = options or None
            if mask is not None:
                mine = mask[share.rows]
                if not mine.any():
                    n = share.size
                    none = np.zeros(n), np.zeros(n, bool), np.zeros(n, bool)
                    outcomes[i] = (self._latest[i], *none, {})
                    continue
                told = {**options, "reset_mask": mine}
            calls[i] = (seeds[share.rows], told)
        outcomes |= self._run("reset", calls)
        observations, _, _, _, infos = self._whole(outcomes)
        return observations, infos

    def step(self, actions: Any) -> Outcome:
        """Step every environment once; see gymnasium."""
        self._check_open()
        ready, self._ready = self._ready, {}
        if self._crew is not None and self._crew.is_open:
            self._disband()  # who is late in that round cannot disturb the next ones
        if self._shares_memory and not ready and not self._in_flight:
            crew = self._crew or self._gather()
            number = 0 if crew is None else crew.begin(actions)
            if crew is not None and number:
                return self._end_round(crew, number, actions)
        space = self.single_action_space
        if len(self._shares) == 1 and not ready:
            calls = {0: (actions,)}
        else:
            calls = {
                i: (rows(space, actions, share.rows),)
                for i, share in enumerate(self._shares)
                if i not in ready
            }
        return self._whole(self._run("step", calls) | ready)

    def render(self) -> tuple[Any, ...] | None:
        """A frame of each environment."""
        return self.call("render")

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The results of method ``name``, or the values of that attribute."""
        calls = dict.fromkeys(range(len(self._shares)), (name, args, kwargs))
        found = self._run("call", calls)
        return tuple(value for i in sorted(found) for value in found[i])

    def get_attr(self, name: str) -> tuple[Any, ...]:
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute: a list or tuple has one value for each environment."""
        if not isinstance(values, (list, tuple)):
            values = [values] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(
                f"{len(values)} values for {self.num_envs} environments: give one "
                "for each, or a single one that is neither list nor tuple."
            )
        calls = {i: (name, values[s.rows]) for i, s in enumerate(self._shares)}
        self._run("set_attr", calls)

    @property  # type: ignore[misc]  # SyncVectorEnv's is read-only, too
    def np_random(self) -> Any:
        return self.call("np_random")

    @property
    def np_random_seed(self) -> Any:  # one for each
        return self.call("np_random_seed")

    def close_extras(self, **kwargs: Any) -> None:
        """End the workers. ``close`` may be called twice."""
        self._end()

    # EnvPool's interface --------------------------------------------------------------

    def async_reset(self, seed: int | Sequence[int | None] | None = None) -> None:
        """Begin to reset all; :meth:`recv` gives the first observations."""
        self._abandon()
        seeds = self._seeds(seed)
        for i, share in enumerate(self._shares):
            self._send(i, "reset", (seeds[share.rows], None))

    def send(self, actions: Any, env_id: npt.NDArray[np.integer[Any]]) -> None:
        """Begin a step of the environments ``env_id``, as :meth:`recv` gave them."""
        self._check_open()
        done = 0
        space = self.single_action_space
        starts = {share.first: i for i, share in enumerate(self._shares)}
        while done < len(env_id):
            share_index = starts.get(int(env_id[done]))
            size = 0 if share_index is None else self._shares[share_index].size
            mine = env_id[done : done + size]
            if share_index is None or not np.array_equal(
                mine, np.arange(mine[0], mine[0] + size)
            ):
                raise ValueError(
                    f"env_id={env_id!r}: pass the env_id of a recv, whole."
                )
            part = rows(space, actions, slice(done, done + size))
            if share_index not in self._ready:
                self._send(share_index, "step", (part,))
            done += size

    def recv(self) -> Outcome:
        """The first ``batch_size`` environments to be ready.

        ``info["env_id"]`` says which they are: pass it to :meth:`send`.
        """
        self._check_open()
        outcomes: dict[int, Outcome] = {}
        for i in list(self._ready)[: self._per_recv]:
            outcomes[i] = self._ready.pop(i)
        wanted = self._per_recv - len(outcomes)
        if wanted > len(self._in_flight):
            raise ValueError(
                f"recv needs {self._per_recv} workers at work, and only "
                f"{len(self._in_flight)} are: call async_reset or send first."
            )
        if wanted:
            refs = list(self._in_flight)
            done, late = skate.wait(
                refs, num_returns=wanted, timeout=self._step_timeout
            )
            for ref in done + late[: wanted - len(done)]:
                i = self._in_flight.pop(ref)
                outcomes[i] = self._outcome(i, ref, timeout=0)
        order = sorted(outcomes)
        batch = self._whole(outcomes)
        batch[4]["env_id"] = np.concatenate(
            [
                np.arange(self._shares[i].rows.start, self._shares[i].rows.stop)
                for i in order
            ]
        )
        return batch

    # how a step is made of all shares at once -----------------------------------------

    def _gather(self) -> Crew | None:
        """Have the workers share memory with the caller; None: one of them is dead."""
        workers = {i: w for i, w in enumerate(self._workers) if w is not None}
        try:
            faces = [worker.face.remote() for worker in workers.values()]
            skate.get(faces, timeout=self._step_timeout)
            plan = make_plan(
                self.observation_space,
                self.action_space,
                self.num_envs,
                len(workers),
            )
            here = slice(0, 0) if self._here is None else self._shares[0].rows
            self._crew = Crew(plan, workers, here)
        except (ActorError, GetTimeoutError, CollectiveTimeoutError):
            return None  # the call that follows replaces whoever is dead or late
        return self._crew

    def _end_round(self, crew: Crew, number: int, actions: Any) -> Outcome:
        """Step the caller's share, and gather what all have stored."""
        board = crew.board
        own: Any = {}
        if self._here is not None:
            outcome = self._here.step(actions[self._shares[0].rows])
            own = outcome[4] if board.store(number, outcome) else outcome
        odd, lost = crew.wait(self._step_timeout)
        if own:
            odd[0] = own
        results = board.results(number)
        if not odd and not lost:
            self._stored_in = number
            self._odd_rounds = 0
            return (*results, {})
        self._odd_rounds += 1
        if self._odd_rounds == _ODD_ROUNDS:
            self._shares_memory = False
        if lost or not self._shares_memory:
            self._disband()
        self._stored_in = 0  # the latest are in the outcomes
        outcomes: dict[int, Outcome] = {}
        for i, share in enumerate(self._shares):
            if i in lost:
                outcomes[i] = self._replace(i, lost[i])
            elif isinstance(odd.get(i), tuple):
                outcomes[i] = odd[i]
            else:
                o, r, t, u = (whole[share.rows] for whole in results)
                outcomes[i] = (o, r, t, u, odd.get(i, {}))
        return self._whole(outcomes)

    def _recall(self) -> None:
        """Have the latest observations here."""
        if self._crew is not None and self._stored_in:
            latest = self._crew.board.observations[self._stored_in & 1]
            self._latest = [latest[share.rows].copy() for share in self._shares]
        self._stored_in = 0

    def _leave_board(self) -> None:
        """The workers are to take calls."""
        if self._crew is not None:
            self._recall()
            self._crew.leave()

    def _disband(self) -> None:
        if self._crew is not None:
            self._leave_board()
            self._crew.board.close()
            self._crew = None

    # how a call is made ---------------------------------------------------------------

    def _run(self, method: str, calls: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Call ``method`` of those shares; the workers' first, then the caller's."""
        self._check_open()
        self._leave_board()
        if self._in_flight:
            raise RuntimeError(
                f"{method} while environments are at work: recv what was sent first."
            )
        workers = self._workers
        refs = {
            i: getattr(workers[i], method).remote(*args)
            for i, args in calls.items()
            if workers[i] is not None
        }
        results: dict[int, Any] = {}
        if self._here is not None and 0 in calls:
            results[0] = self._call_here(method, calls[0])
        if not refs:
            return results
        began = time.monotonic()
        try:
            found = skate.get(list(refs.values()), timeout=self._step_timeout)
        except (ActorError, GetTimeoutError):
            for i, ref in refs.items():
                left = None
                if self._step_timeout is not None:
                    left = max(0.0, began + self._step_timeout - time.monotonic())
                results[i] = self._outcome(i, ref, left)
        else:
            results.update(zip(refs, found, strict=True))
        return results

    def _call_here(self, method: str, args: tuple[Any, ...]) -> Any:
        envs: Any = self._here
        if method == "step":
            return envs.step(*args)
        if method == "reset":
            return reset(envs, *args)
        if method == "call":
            name, positional, named = args
            return envs.call(name, *positional, **named)
        return envs.set_attr(*args)

    def _send(self, i: int, method: str, args: tuple[Any, ...]) -> None:
        if self._workers[i] is None:
            raise ValueError(
                "send and recv need all environments in workers: VectorEnv(..., "
                "in_caller=False)."
            )
        self._leave_board()
        self._in_flight[getattr(self._workers[i], method).remote(*args)] = i

    def _outcome(self, i: int, ref: Any, timeout: float | None) -> Any:
        """Of one call; of a new worker, if that one is dead or late."""
        try:
            return skate.get(ref, timeout=timeout)
        except (ActorError, GetTimeoutError) as error:
            return self._replace(i, error)

    def _replace(self, i: int, why: Exception) -> Outcome:
        """Give share ``i`` a new worker; the outcome of the step that was lost."""
        self._disband()
        skate.kill(self._workers[i])
        share = self._shares[i]
        self._replacements += 1
        self._workers[i] = self._actor_class.remote(share)
        sequence = np.random.SeedSequence(self._seed, spawn_key=(self._replacements,))
        seeds = sequence.generate_state(share.size).tolist()
        try:
            begun: Outcome = skate.get(self._workers[i].reset.remote(seeds, None))
        except Exception as error:
            raise error from why  # it fails at once again: no use in going on
        n = share.size
        yes = np.ones(n, bool)
        infos: dict[str, Any] = {"replaced": yes, "_replaced": yes}
        last = self._latest[i]
        if last is None:  # it was lost in its first reset
            return (*begun[:4], begun[4] | infos)
        lost = np.zeros(n), np.zeros(n, bool), yes
        if share.autoreset_mode == AutoresetMode.SAME_STEP:
            final = np.empty(n, object)
            for row in range(n):
                final[row] = rows(
                    self.single_observation_space, last, slice(row, row + 1)
                )[0]
            infos |= {"final_obs": final, "_final_obs": yes} | begun[4]
            return (begun[0], *lost, infos)
        if share.autoreset_mode == AutoresetMode.NEXT_STEP:
            self._ready[i] = begun
        return (last, *lost, infos)

    def _whole(self, outcomes: dict[int, Outcome]) -> Outcome:
        """One batch, in order of the shares."""
        order = sorted(outcomes)
        parts = [outcomes[i] for i in order]
        for i, part in zip(order, parts, strict=True):
            self._latest[i] = part[0]
        observations, rewards, terminated, truncated, infos = zip(*parts, strict=True)
        return (
            join(self.single_observation_space, observations),
            np.concatenate(rewards, dtype=np.float64),
            np.concatenate(terminated, dtype=np.bool_),
            np.concatenate(truncated, dtype=np.bool_),
            join_infos(infos, [self._shares[i].size for i in order]),
        )

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        seeds: list[int | None]
        if isinstance(seed, (int, np.integer)):
            seeds = [int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(
                f"seed has {len(seeds)} numbers for {self.num_envs} environments."
            )
        self._seed = seeds[0]
        return seeds

    def _checked_mask(self, mask: Any) -> npt.NDArray[np.bool_]:
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(
                f"reset_mask={mask!r}; expected an array of bool, one for each "
                "environment."
            )
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(
                f"reset_mask={mask!r}; expected {self.num_envs} values, one of them "
                "True at least."
            )
        if any(latest is None for latest in self._latest):
            raise ValueError("reset_mask before the first reset of all environments.")
        return mask

    def _check_numbers(
        self,
        num_workers: int,
        batch_size: int | None,
        step_timeout: float | None,
        in_caller: bool,
    ) -> None:
        n = self.num_envs
        if n < 1:
            raise ValueError(f"num_envs={n!r}; expected at least 1.")
        if not 1 <= num_workers <= n:
            raise ValueError(
                f"num_workers={num_workers!r}; expected 1 to num_envs={n}."
            )
        if batch_size is not None and not 1 <= batch_size <= n:
            raise ValueError(f"batch_size={batch_size!r}; expected 1 to num_envs={n}.")
        if step_timeout is not None and not step_timeout > 0:
            raise ValueError(
                f"step_timeout={step_timeout!r}; expected seconds, more than 0."
            )
        if in_caller and step_timeout is not None:
            raise ValueError(
                "step_timeout cannot end an environment in the calling process: leave "
                "in_caller out, or False."
            )

    def _abandon(self) -> None:
        """Forget what is under way: workers finish it before their next call."""
        self._check_open()
        self._leave_board()
        self._in_flight.clear()
        self._ready.clear()

    def _check_open(self) -> None:
        if self.closed:
            raise gymnasium.error.ClosedEnvironmentError(
                "this sim.VectorEnv is closed; make another."
            )

    def _end(self) -> None:
        if self._here is not None:
            self._here.close()
        actors = [worker for worker in self._workers if worker is not None]
        self._workers = []
        if not actors or not skate.is_initialized():
            return
        self._disband()
        with contextlib.suppress(Exception):  # an environment's own trouble in closing
            ends = [actor.close.remote() for actor in actors]
            skate.wait(ends, num_returns=len(ends), timeout=CLOSE_S)
        for actor in actors:
            skate.kill(actor)

    def __del__(self) -> None:
        if not self.closed:
            self.close()


def _shares(
    env: Any, num_envs: int, num_workers: int, mode: AutoresetMode, vectorized: bool
) -> list[Share]:
    ends = [num_envs * (i + 1) // num_workers for i in range(num_workers)]
    starts = [0, *ends[:-1]]
    return [
        Share(env, start, end - start, mode, vectorized)
        for start, end in zip(starts, ends, strict=True)
    ]
