import contextlib
import os
import signal
import time
from typing import Any

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")
from gymnasium.vector import AutoresetMode, SyncVectorEnv  # noqa: E402

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
