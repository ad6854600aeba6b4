"""Steps of a vector environment through memory that the caller and its workers share.

The caller writes the actions, wakes all workers at once, and is woken by the last that
has stepped its share: one hand-over a step. A worker stays in one call of its actor
meanwhile. It returns from it when it is told to, and when a step gave what has no place
in the shared arrays: an error, infos, results of another shape.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import gymnasium
import numpy as np

import skate
from skate import collective
from skate.exceptions import ActorError, GetTimeoutError, SkateError

Outcome = tuple[Any, Any, Any, Any, dict[str, Any]]  # of a step of some environments

_JOIN_S = 10.0  # they are all there
_SLICE_S = 0.05  # of the caller's waits, between two looks for dead workers
_LOOK_S = 1.0  # between two looks of a worker whether the caller lives
_ITEM_BYTES = 8  # of an action: no number is wider


class Part(NamedTuple):
    """An array in the shared memory."""

    start: int  # bytes
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def of(self, memory: np.ndarray) -> np.ndarray:
        part = memory[self.start : self.start + self.nbytes]
        return part.view(self.dtype).reshape(self.shape)


class Plan(NamedTuple):
    """What is where in the shared memory, and who shares it; travels to workers."""

    group: collective.GroupSpec
    caller: int  # its process
    action_shape: tuple[int, ...]  # of one environment
    parts: dict[str, Part]

    @property
    def nbytes(self) -> int:
        return max(part.start + part.nbytes for part in self.parts.values())


def can_share(engine: str, observation: Any, action: Any) -> bool:
    """Whether processes of this engine share memory, and rows are plain arrays."""
    plain = (
        gymnasium.spaces.Box,
        gymnasium.spaces.Discrete,
        gymnasium.spaces.MultiBinary,
        gymnasium.spaces.MultiDiscrete,
    )
    spaces_are_plain = isinstance(observation, plain) and isinstance(action, plain)
    return engine == "embedded" and spaces_are_plain


def make_plan(
    observations: gymnasium.Space[Any],
    actions: gymnasium.Space[Any],
    num_envs: int,
    num_workers: int,
) -> Plan:
    """For spaces of the whole batch; ``num_workers`` without the caller."""
    action_shape = actions.shape[1:] if actions.shape else ()
    wanted: dict[str, tuple[Any, tuple[int, ...]]] = {
        "last_leave": (
            np.int64,
            (1,),
        ),  # the latest round in which workers are to leave
        "dtype": (np.int64, (1,)),  # of the actions, by its character
        "left": (np.uint8, (num_workers,)),
        "actions": (np.uint8, (num_envs, *action_shape, _ITEM_BYTES)),
        # Of two rounds: if a worker is lost in one, those before it are wanted.
        "observations": (observations.dtype, (2, *(observations.shape or ()))),
        "rewards": (np.float64, (num_envs,)),
        "terminated": (np.bool_, (num_envs,)),
        "truncated": (np.bool_, (num_envs,)),
    }
    parts = {}
    end = 0
    for name, (dtype, shape) in wanted.items():
        parts[name] = Part(end, np.dtype(dtype).str, shape)
        end += -(-parts[name].nbytes // 64) * 64
    group = collective.create_group(num_workers + 1)
    return Plan(group, os.getpid(), action_shape, parts)


class Board:
    """The shared memory in one process: 0 is the caller, then come the workers.

    What a step needs is prepared: with more processes than cores each one finds its
    caches cold, where a line of Python costs tens of times as much.
    """

    def __init__(self, plan: Plan, process: int, rows: slice) -> None:
        """``rows``: the environments of this process."""
        self._plan = plan
        self._group = plan.group.join(process, _JOIN_S)
        own = self._group.empty(0 if process else plan.nbytes, np.uint8)
        own[:] = 0
        found = self._group.peers(own)
        rounds = self._group.rounds()
        assert found is not None  # can_share has looked
        assert rounds is not None
        self.rounds = rounds
        arrays = {name: part.of(found[0]) for name, part in plan.parts.items()}
        self.last_leave = arrays["last_leave"]
        self._dtype_of_actions = arrays["dtype"]
        self.left = arrays["left"]
        self._actions = arrays["actions"].reshape(-1)
        self._actions_as: dict[str, np.ndarray] = {}  # by dtype
        self._rows = rows
        observations = arrays["observations"]
        #: Of all environments after an even and an odd round; kept until the next such.
        self.observations = observations[0], observations[1]
        self._results = [arrays[n] for n in ("rewards", "terminated", "truncated")]
        self._observed_here = [whole[rows] for whole in self.observations]
        self._results_here = [whole[rows] for whole in self._results]
        self._shape_here = self._observed_here[0].shape
        self._dtype = self._observed_here[0].dtype

    def take(self, actions: Any) -> bool:
        """Write the actions; False if they are no numbers for all environments."""
        if type(actions) is not np.ndarray:
            return False
        char = actions.dtype.char
        place = self._actions_as.get(char)
        if place is None:
            if actions.dtype.kind not in "biuf" or actions.itemsize > _ITEM_BYTES:
                return False
            place = self._view_actions(char)
        if place.shape != actions.shape:
            return False
        self._dtype_of_actions[0] = ord(char)
        place[...] = actions
        return True

    def actions(self) -> np.ndarray:
        """Of the environments here; a copy: they may keep them."""
        char = chr(self._dtype_of_actions[0])
        place = self._actions_as.get(char)
        if place is None:
            place = self._view_actions(char)
        found: np.ndarray = place[self._rows].copy()
        return found

    def _view_actions(self, char: str) -> np.ndarray:
        dtype = np.dtype(char)
        shape = (len(self._results[0]), *self._plan.action_shape)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        view: np.ndarray = self._actions[:size].view(dtype).reshape(shape)
        self._actions_as[char] = view
        return view

    def store(self, number: int, outcome: Outcome) -> bool:
        """Write the results of a round here; False if they have another form."""
        observations, rewards, terminated, truncated, _ = outcome
        if (
            type(observations) is not np.ndarray
            or observations.shape != self._shape_here
            or observations.dtype != self._dtype
        ):
            return False
        self._observed_here[number & 1][...] = observations
        places = self._results_here
        places[0][...] = rewards
        places[1][...] = terminated
        places[2][...] = truncated
        return True

    def results(self, number: int) -> tuple[Any, Any, Any, Any]:
        """Copies of all rows: observations, rewards, terminated, truncated."""
        rewards, terminated, truncated = self._results
        observations = self.observations[number & 1].copy()
        return observations, rewards.copy(), terminated.copy(), truncated.copy()

    def close(self) -> None:
        self._group.close()

    # a worker's -----------------------------------------------------------------------

    def serve(self, envs: Any, worker: int, seen: int) -> Any:
        """Step ``envs`` in the rounds after ``seen``, as long as results fit.

        Returns:
            None: it was told to leave. A dict: the infos of its last step, whose other
            results are stored. A tuple: the outcome of its last step.
        """
        rounds, last_leave = self.rounds, self.last_leave
        while True:
            number = rounds.next(seen, _LOOK_S)
            if number == seen:
                if self._is_alone():
                    return None
                continue
            if last_leave[0] > seen:  # also if a step has begun since: of a later call
                if last_leave[0] == seen + 1:
                    return None
                number = seen + 1  # a step before, which the caller did not wait for
            seen = number
            stays = fits = False
            try:
                outcome = envs.step(self.actions())
                fits = self.store(number, outcome)
                stays = fits and not outcome[4]
            finally:
                if not stays:
                    self.left[worker] = 1
                rounds.end(worker, number, not stays)
            if not stays:
                return outcome[4] if fits else outcome

    def _is_alone(self) -> bool:
        try:
            os.kill(self._plan.caller, 0)
        except ProcessLookupError:
            return True
        return False


class Crew:
    """The caller's side: workers that step in rounds.

    Args:
        plan: see :func:`make_plan`.
        workers: the actors, by share; each an ``EnvWorker``.
        rows: the environments that the caller steps itself.
    """

    def __init__(self, plan: Plan, workers: dict[int, Any], rows: slice) -> None:
        self._workers = workers
        self._places = {share: k for k, share in enumerate(workers)}
        joins = [
            worker.join_board.remote(plan, place)
            for place, worker in enumerate(workers.values())
        ]
        self.board = Board(plan, 0, rows)
        skate.get(joins)
        self._rounds = self.board.rounds
        self._round = 0
        self._serving: dict[int, Any] = {}  # share -> the call that serves
        #: Whether a round was not waited for: an error in the caller's share, Ctrl-C.
        self.is_open = False

    def begin(self, actions: Any) -> int:
        """Begin a step of all shares; its number. 0: these actions have no place."""
        if not self.board.take(actions):
            return 0
        serving = self._serving
        if len(serving) != len(self._workers):
            for share, worker in self._workers.items():
                if share not in serving:
                    serving[share] = worker.serve.remote(self._round)
        self.is_open = True
        self._round = self._rounds.begin()
        return self._round

    def wait(
        self, timeout: float | None
    ) -> tuple[dict[int, Any], dict[int, Exception]]:
        """Wait for the round's end.

        Returns:
            What workers returned that could not stay, by share; and the shares that
            are lost, and why.

        Raises:
            Exception: what a step raised.
        """
        lost: dict[int, Exception] = {}
        if timeout is not None or not self._rounds.wait(_SLICE_S):
            lost = self._wait_patiently(timeout)
        self.is_open = False
        for share in lost:
            del self._serving[share]
        return (self._returned(lost) if self._rounds.num_odd else {}), lost

    def leave(self) -> None:
        """Have the workers return, so that they take other calls; waits for nobody."""
        if self._serving:
            self.board.last_leave[0] = self._round + 1
            self._round = self._rounds.begin()
            self._serving.clear()

    def _wait_patiently(self, timeout: float | None) -> dict[int, Exception]:
        lost: dict[int, Exception] = {}
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _SLICE_S
            if deadline is not None:
                left = min(left, max(0.0, deadline - time.monotonic()))
            ended = self._rounds.wait(left)
            late = (
                [] if ended else [share for share in self._late() if share not in lost]
            )
            lost |= self._dead(late)
            late = [share for share in late if share not in lost]
            if not late:
                return lost
            if deadline is not None and time.monotonic() >= deadline:
                why = GetTimeoutError(f"no step within {timeout} s")
                return dict.fromkeys(late, why) | lost

    def _late(self) -> list[int]:
        ended = self._rounds.has_ended
        return [share for share in self._serving if not ended(self._places[share])]

    def _dead(self, late: Iterable[int]) -> dict[int, Exception]:
        """Those whose call has ended, though their round has not."""
        found: dict[int, Exception] = {}
        for share in late:
            call = self._serving[share]
            if not skate.wait([call], timeout=0)[0]:
                continue
            if self._rounds.has_ended(self._places[share]):
                continue  # just now
            try:
                skate.get(call)
            except SkateError as error:
                found[share] = error
            else:
                found[share] = SkateError("its worker has left")
        return found

    def _returned(self, lost: dict[int, Exception]) -> dict[int, Any]:
        """Adds those to ``lost`` that died before they had returned."""
        left = self.board.left
        calls = {s: c for s, c in self._serving.items() if left[self._places[s]]}
        left[:] = 0
        for share in calls:
            del self._serving[share]
        found: dict[int, Any] = {}
        for share, call in calls.items():
            try:
                found[share] = skate.get(call)
            except ActorError as error:
                lost[share] = error
        return found
