import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from polling import wait_until

gymnasium = pytest.importorskip("gymnasium")
from gymnasium.vector import AutoresetMode, SyncVectorEnv  # noqa: E402

import skate  # noqa: E402
from skate import sim  # noqa: E402

pytestmark = pytest.mark.usefixtures("engine")

MODES = list(AutoresetMode)


class Counting(gymnasium.Env):
    """Counts its steps, in spaces of many kinds; an episode has ``length`` of them."""

    observation_space = gymnasium.spaces.Dict(
        {
            "count": gymnasium.spaces.Box(-1e9, 1e9, (2,), np.float64),
            "pair": gymnasium.spaces.Tuple(
                (gymnasium.spaces.Discrete(100), gymnasium.spaces.MultiBinary(3))
            ),
        }
    )
    action_space = gymnasium.spaces.Dict(
        {
            "move": gymnasium.spaces.Box(-1, 1, (2,), np.float32),
            "button": gymnasium.spaces.Discrete(4),
        }
    )

    def __init__(self, length: int = 5) -> None:
        self.length = length
        self.steps = 0
        self.place = np.zeros(2)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        self.place = self.np_random.normal(size=2)
        return self._observe(), {"fresh": True, "options": str(options)}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.place = self.place + action["move"] + action["button"]
        info = {"steps": self.steps, "nested": {"place": self.place.copy()}}
        if self.steps % 2:
            info["odd"] = "yes"
        ended = self.steps == self.length
        return self._observe(), float(self.place.sum()), False, ended, info

    def _observe(self) -> Any:
        bits = np.array([self.steps & 1, self.steps & 2 > 0, 0], np.int8)
        return {"count": self.place.copy(), "pair": (self.steps, bits)}


class Fragile(gymnasium.Env):
    """Its action says what happens: 0 nothing, 1 an error, 2 death, 3 a long wait."""

    observation_space = gymnasium.spaces.Box(0, 1e6, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(5)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        if action == 1:
            raise KeyError("broken")
        if action == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if action == 3:
            time.sleep(1000)
        shape = 2 if action == 4 else 1
        return np.full(shape, self.steps, np.float32), 1.0, False, False, {}


def same(a: Any, b: Any) -> None:
    """Equal, in values, types and structure."""
    assert type(a) is type(b), (a, b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            same(a[name], b[name])
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, np.ndarray) and a.dtype == object:
        assert a.shape == b.shape
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        np.testing.assert_array_equal(a, b, strict=isinstance(a, np.ndarray))


@pytest.mark.parametrize(
    ("mode", "in_caller"),
    [*((mode, True) for mode in MODES), (AutoresetMode.SAME_STEP, False)],
)
def test_it_does_what_gymnasiums_own_does(mode: AutoresetMode, in_caller: bool) -> None:
    theirs = SyncVectorEnv([Counting] * 5, autoreset_mode=mode)
    with contextlib.closing(
        sim.VectorEnv(
            Counting, 5, num_workers=2, autoreset_mode=mode, in_caller=in_caller
        )
    ) as ours:
        assert ours.observation_space == theirs.observation_space
        assert ours.action_space == theirs.action_space
        assert ours.metadata == theirs.metadata
        same(ours.reset(seed=3), theirs.reset(seed=3))
        theirs.action_space.seed(0)
        for _ in range(12):
            actions = theirs.action_space.sample()
            ours_now, theirs_now = ours.step(actions), theirs.step(actions)
            same(ours_now, theirs_now)
            assert ours_now[0] in ours.observation_space
            ended = theirs_now[2] | theirs_now[3]
            if mode == AutoresetMode.DISABLED and ended.any():
                masks = [{"reset_mask": ended.copy(), "x": 1} for _ in range(2)]
                same(ours.reset(options=masks[0]), theirs.reset(options=masks[1]))
        assert ours.get_attr("steps") == theirs.get_attr("steps")
        ours.set_attr("length", [1, 2, 3, 4, 5])
        assert ours.get_attr("length") == (1, 2, 3, 4, 5)
    assert ours.closed
    with pytest.raises(gymnasium.error.ClosedEnvironmentError):
        ours.reset()


def test_results_do_not_depend_on_the_number_of_workers() -> None:
    runs = []
    for workers in (1, 3):
        with contextlib.closing(
            sim.VectorEnv("CartPole-v1", 6, num_workers=workers)
        ) as envs:
            steps = [envs.reset(seed=1)]
            steps += [envs.step(np.ones(6, np.int64)) for _ in range(12)]
            runs.append(steps)
    for one, other in zip(*runs, strict=True):
        same(one, other)


def test_native_vector_environments_run_in_workers() -> None:
    theirs = gymnasium.make_vec(
        "CartPole-v1", 3, vectorization_mode="vector_entry_point"
    )
    with contextlib.closing(
        sim.VectorEnv("CartPole-v1", 6, num_workers=2, vectorized=True)
    ) as envs:
        assert envs.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
        envs.reset(seed=1)
        observations, rewards, *_ = envs.step(np.zeros(6, np.int64))
        assert observations.shape == (6, 4)
        assert rewards.tolist() == [1.0] * 6
    theirs.close()


def test_the_first_to_be_ready_come_first() -> None:
    with contextlib.closing(
        sim.VectorEnv(Fragile, 6, num_workers=3, batch_size=2)
    ) as envs:
        envs.async_reset(seed=0)
        shares = {(0, 1), (2, 3), (4, 5)}
        seen = set()
        while seen != shares:  # a slow worker may be overtaken many times
            observations, *_, info = envs.recv()
            assert observations.shape == (2, 1)
            seen.add(tuple(info["env_id"].tolist()))
            assert seen <= shares
            envs.send(np.zeros(2, np.int64), info["env_id"])
        envs.reset()  # drops what is under way
        with pytest.raises(ValueError, match="call async_reset or send first"):
            envs.recv()


@pytest.mark.parametrize("in_caller", [True, False])
def test_an_error_names_the_environment_and_the_step(in_caller: bool) -> None:
    with contextlib.closing(
        sim.VectorEnv(Fragile, 4, num_workers=2, in_caller=in_caller)
    ) as envs:
        envs.reset()
        envs.step(np.zeros(4, int))
        with pytest.raises(
            sim.EnvError, match=r"environment 3 raised at step 2: KeyEr"
        ):
            envs.step(np.array([0, 0, 0, 1]))
        with pytest.raises(sim.EnvError, match=r"environment 0, step .* shape \(2,\)"):
            envs.step(np.array([4, 0, 0, 0]))
        envs.reset()  # and goes on


def test_a_constructor_that_raises_is_told_once() -> None:
    made = []

    def broken() -> Any:
        made.append(1)
        raise OSError("no such game")

    with pytest.raises(OSError, match="no such game"):
        sim.VectorEnv(broken, 4, num_workers=2)
    assert len(made) == 1


class Remembers(gymnasium.Env):
    """Keeps its last action and observation, as some environments do."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-9, 9, (1,), np.float32)
    pid = property(lambda _: os.getpid())

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.before = np.zeros(1, np.float32)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        observation, self.before = self.before, action
        info = {"large": True} if action[0] > 8 else {}
        return observation, float(action[0]), False, False, info


def test_actions_and_observations_belong_to_who_has_them() -> None:
    with contextlib.closing(
        sim.VectorEnv(Remembers, 4, num_workers=2, in_caller=False)
    ) as envs:
        envs.reset()
        seen = []
        for step in range(4):
            actions = np.full((4, 1), step + 1, np.float32)
            seen.append(envs.step(actions)[0])
            actions[:] = -1
        assert [o.ravel().tolist() for o in seen] == [[float(n)] * 4 for n in range(4)]
        seen[-1][:] = 5  # of the caller's: what environments observe stays
        assert envs.step(np.ones((4, 1), np.float32))[0].ravel().tolist() == [4.0] * 4
        mask = np.array([True, False, False, False])
        observations, _ = envs.reset(options={"reset_mask": mask})
        assert observations.ravel().tolist() == [0.0, 4.0, 4.0, 4.0]


def test_actions_may_change_their_form_and_infos_come_at_any_step() -> None:
    """Each in turn: what goes through shared memory, and what does not."""
    with contextlib.closing(sim.VectorEnv(Remembers, 4, num_workers=2)) as envs:
        envs.reset()
        for cast in (np.float32, np.float64, int, list, np.float32):
            actions = np.array([[1], [2], [3], [4]])
            given = [list(a) for a in actions] if cast is list else actions.astype(cast)
            rewards, info = envs.step(given)[1::3]
            assert rewards.tolist() == [1.0, 2.0, 3.0, 4.0]
            assert not info
            for step in range(24 if cast is int else 4):
                large = step % 4
                actions = np.full((4, 1), 2.0, np.float32)
                actions[large] = 9.0
                _, rewards, _, _, info = envs.step(actions)
                assert rewards.tolist() == actions.ravel().tolist()
                assert info["large"].tolist() == [i == large for i in range(4)]


def test_an_error_in_the_callers_share_leaves_the_others_in_step() -> None:
    with contextlib.closing(sim.VectorEnv(Fragile, 4, num_workers=2)) as envs:
        envs.reset()
        for i in range(20):  # the others may have begun by then, or not
            with pytest.raises(sim.EnvError, match="environment 0"):
                envs.step(np.array([1, 0, 0, 0]))
            observations, *_ = envs.step(np.zeros(4, int))
            assert observations[2:, 0].tolist() == [2 * i + 2] * 2


@pytest.mark.differs(inline="an environment that dies or hangs takes its caller along")
def test_a_hung_environment_does_not_hold_up_close() -> None:
    with contextlib.closing(sim.VectorEnv(Fragile, 4, num_workers=2)) as envs:
        envs.reset()
        envs.step(np.zeros(4, int))
        with pytest.raises(sim.EnvError, match="environment 0"):
            envs.step(np.array([1, 0, 0, 3]))  # while the other share waits for ever


@pytest.mark.differs(inline="an environment that dies or hangs takes its caller along")
@pytest.mark.parametrize("has_stepped", [False, True])
def test_a_worker_that_dies_between_two_steps_is_replaced(has_stepped: bool) -> None:
    with contextlib.closing(sim.VectorEnv(Remembers, 4, num_workers=2)) as envs:
        envs.reset()
        pids = envs.call("pid")
        actions = np.ones((4, 1), np.float32)
        if has_stepped:
            envs.step(actions)
        os.kill(pids[-1], signal.SIGKILL)
        _, rewards, _, truncated, info = envs.step(actions)
        assert rewards.tolist() == [1, 1, 0, 0]
        assert (
            truncated.tolist() == info["replaced"].tolist() == [False] * 2 + [True] * 2
        )
        assert envs.step(actions)[0].ravel().tolist() == [1, 1, 0, 0]  # a new episode
        envs.step(actions)
        assert envs.step(actions)[0].ravel().tolist() == [1, 1, 1, 1]


@skate.remote(num_cpus=0)
class Player:
    """Has a vector environment of its own."""

    def __init__(self) -> None:
        self.envs = sim.VectorEnv(Remembers, 4, num_workers=2, in_caller=False)
        self.envs.reset()

    def play(self) -> tuple[int, ...]:
        """Processes of the environments, which have stepped since they were asked."""
        pids = self.envs.call("pid")
        self.envs.step(np.ones((4, 1), np.float32))
        return pids


@pytest.mark.differs(inline="it has no processes to end")
def test_workers_end_with_the_process_that_they_work_for() -> None:
    player = Player.remote()
    pids = set(skate.get(player.play.remote()))
    assert len(pids) == 2
    skate.kill(player)
    assert wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


@pytest.mark.differs(inline="an environment that dies or hangs takes its caller along")
@pytest.mark.parametrize(
    ("fault", "mode"), [*((2, mode) for mode in MODES), (3, AutoresetMode.NEXT_STEP)]
)
def test_a_dead_or_hung_worker_is_replaced_alone(
    fault: int, mode: AutoresetMode
) -> None:
    timeout = 0.5 if fault == 3 else 20.0
    with contextlib.closing(
        sim.VectorEnv(
            Fragile, 4, num_workers=2, autoreset_mode=mode, step_timeout=timeout
        )
    ) as envs:
        envs.reset(seed=0)
        envs.step(np.zeros(4, int))
        observations, rewards, terminated, truncated, info = envs.step(
            np.array([0, 0, 0, fault])
        )
        first = 0 if mode == AutoresetMode.SAME_STEP else 1
        assert observations[:, 0].tolist() == [2, 2, first, first]
        assert rewards.tolist() == [1, 1, 0, 0]
        assert truncated.tolist() == [False, False, True, True]
        assert info["replaced"].tolist() == [False, False, True, True]
        assert not terminated.any()
        if mode == AutoresetMode.SAME_STEP:
            assert info["final_obs"][3].tolist() == [1]
        if mode == AutoresetMode.DISABLED:
            envs.reset(options={"reset_mask": truncated})
        observations, *_ = envs.step(np.zeros(4, int))
        following = 0 if mode == AutoresetMode.NEXT_STEP else 1
        assert observations[:, 0].tolist() == [3, 3, following, following]
        assert envs.step(np.zeros(4, int))[0][:, 0].tolist()[:2] == [4, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 0}, "num_envs=0; expected at least 1"),
        ({"num_workers": 5}, "num_workers=5; expected 1 to num_envs=4"),
        ({"batch_size": 5}, "batch_size=5; expected 1 to num_envs=4"),
        ({"batch_size": 3, "num_workers": 2}, "workers need equal shares"),
        ({"step_timeout": 0.0}, "step_timeout=0.0; expected seconds"),
        ({"step_timeout": 1.0, "in_caller": True}, "leave in_caller out"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sim.VectorEnv(Fragile, **({"num_envs": 4} | options))
