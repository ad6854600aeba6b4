import contextlib
import warnings
from typing import Any

import numpy as np
import pytest

sb3 = pytest.importorskip("stable_baselines3", reason="only benchmarks install it")

from stable_baselines3.common.vec_env import DummyVecEnv  # noqa: E402

import skate  # noqa: E402
from skate import sim  # noqa: E402
from skate.sim.sb3 import SB3VecEnv  # noqa: E402


def make() -> Any:
    import gymnasium
    from stable_baselines3.common.monitor import Monitor

    return Monitor(gymnasium.make("CartPole-v1"))


def test_stable_baselines3_trains_on_it_as_on_its_own() -> None:
    skate.init("inline", num_cpus=2)
    ours = SB3VecEnv(sim.VectorEnv(make, 4, num_workers=2, autoreset_mode="SameStep"))
    rewards = []
    with warnings.catch_warnings(), contextlib.closing(ours):
        warnings.simplefilter("ignore")
        for env in (ours, DummyVecEnv([make] * 4)):
            ppo = sb3.PPO("MlpPolicy", env, n_steps=32, n_epochs=1, seed=1)
            ppo.learn(256)
            rewards.append([info["r"] for info in ppo.ep_info_buffer])
    assert rewards[0] == rewards[1]


def test_what_an_episode_ended_with_is_in_its_info() -> None:
    skate.init("inline", num_cpus=2)
    with contextlib.closing(
        SB3VecEnv(sim.VectorEnv("CartPole-v1", 3, autoreset_mode="SameStep"))
    ) as env:
        env.seed(0)
        env.reset()
        done = np.zeros(3, bool)
        while not done.any():
            observations, _, done, infos = env.step(np.ones(3, int))
        i = int(done.argmax())
        assert abs(infos[i]["terminal_observation"][2]) > 0.2
        assert abs(observations[i][2]) < 0.2
        assert infos[i]["TimeLimit.truncated"] is False
        assert env.env_is_wrapped(DummyVecEnv) == [False] * 3


def test_another_autoreset_mode_is_refused() -> None:
    skate.init("inline", num_cpus=2)
    with (
        contextlib.closing(sim.VectorEnv("CartPole-v1", 2)) as env,
        pytest.raises(ValueError, match='autoreset_mode="SameStep"'),
    ):
        SB3VecEnv(env)
