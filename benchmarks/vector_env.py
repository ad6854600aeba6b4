"""What does a step of a vector of environments cost?

sim.VectorEnv beside gymnasium's and Stable-Baselines3's vector environments, processes
that share memory by hand and, with environments of its own in C++, EnvPool: another
class, shown for scale. Actions are drawn before. A cell is the median over rounds of
the median step, in us.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

import skate
from skate import sim

from .peers.hand_vector import HandVector

RESULTS = Path(__file__).parent / "results"
WARM_UP = 20


class Nothing(gymnasium.Env):
    """An environment that does nothing: what is left is the vector's own cost."""

    observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    _observation = np.zeros(4, np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self._observation, {}

    def step(self, action: Any) -> Any:
        return self._observation, 0.0, False, False, {}


def pendulum() -> gymnasium.Env:
    return gymnasium.make("Pendulum-v1")


def cases() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Case, system, and what makes it."""
    for name, make, sizes in (
        ("nothing", Nothing, (1, 8)),
        ("Pendulum", pendulum, (8, 64)),
    ):
        for n in sizes:
            yield (
                f"{name} {n}",
                "gymnasium Sync",
                lambda m=make, n=n: SyncVectorEnv([m] * n),
            )
            yield (
                f"{name} {n}",
                "gymnasium Async",
                lambda m=make, n=n: AsyncVectorEnv([m] * n),
            )
            for workers in (1, 2, 8):
                if workers <= n:
                    yield (
                        f"{name} {n}",
                        f"skate, {workers} workers",
                        lambda m=make, n=n, w=workers: sim.VectorEnv(
                            m, n, num_workers=w
                        ),
                    )
    for workers in (2, 8):
        yield (
            "Pendulum 64",
            f"by hand, {workers} workers",
            lambda w=workers: HandVector(pendulum, 64, w),
        )
    for n in (8, 64):
        yield f"Pendulum {n}", "Stable-Baselines3 Dummy", lambda n=n: _sb3(n, "Dummy")
        yield (
            f"Pendulum {n}",
            "Stable-Baselines3 Subproc",
            lambda n=n: _sb3(n, "Subproc"),
        )
        yield f"Pendulum {n}", "EnvPool (C++)", lambda n=n: _envpool(n)


def _sb3(n: int, kind: str) -> Any:
    from stable_baselines3.common import vec_env

    makers = [pendulum] * n
    if kind == "Dummy":
        return vec_env.DummyVecEnv(makers)
    return vec_env.SubprocVecEnv(makers, start_method="fork")


def _envpool(n: int) -> Any:
    import envpool

    return envpool.make("Pendulum-v1", env_type="gymnasium", num_envs=n, num_threads=2)


def measure(envs: Any, n: int, seconds: float) -> float:
    """The median step, in us."""
    space = getattr(envs, "single_action_space", envs.action_space)
    actions = np.stack([space.sample() for _ in range(n)])
    envs.reset()
    took = []
    for _ in range(WARM_UP):
        envs.step(actions)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        envs.step(actions)
        took.append(time.perf_counter() - start)
    return statistics.median(took) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--into", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found: dict[str, dict[str, list[float]]] = {}
    with skate.init():
        for _ in range(arguments.rounds):
            for case, system, make in cases():
                n = int(case.split()[-1])
                envs = make()
                took = measure(envs, n, arguments.seconds)
                envs.close()
                found.setdefault(case, {}).setdefault(system, []).append(took)
    for case, systems in found.items():
        n = int(case.split()[-1])
        for system, rounds in systems.items():
            took = statistics.median(rounds)
            print(
                f"{case:12} {system:26} {took:9.1f} us {n / took * 1e3:8.1f} K steps/s"
            )
    arguments.into.mkdir(parents=True, exist_ok=True)
    (arguments.into / "vector_env.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
