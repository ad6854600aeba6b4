"""How long does PPO take to reach 475 on CartPole-v1, over the last 100 episodes?

skate.rl beside Stable-Baselines3's PPO with its tuned settings for this environment (8
environments in one process, one torch thread). Both stop once the mean return of the
last 100 training episodes is 475. Two times each: of training
alone, and of the whole call, which has skate's processes and imports in it; imports of
the benchmark's own process are outside of both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TARGET = 475.0
EPISODES = 100


def skate_ppo(seed: int) -> dict[str, Any]:
    import skate
    from skate import rl

    skate.init()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        log = Path(folder) / "run" / "metrics.jsonl"
        rl.train(
            "ppo",
            "CartPole-v1",
            out=log.parent,
            seed=seed,
            target_return=TARGET,
            eval_episodes=1,
            progress=False,
        )
        whole = time.perf_counter() - began
        last = json.loads(log.read_text().splitlines()[-1])
    skate.shutdown()
    return {
        "train_s": last["wall_s"],
        "call_s": whole,  # with an evaluation and two pictures
        "steps": last["env_steps"],
        "reached": last["mean_return"] >= TARGET,
    }


def stable_baselines3_ppo(seed: int) -> dict[str, Any]:
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class StopAtTarget(BaseCallback):
        def _on_step(self) -> bool:
            last = [info["r"] for info in self.model.ep_info_buffer]
            return len(last) < EPISODES or statistics.fmean(last) < TARGET

    torch.set_num_threads(1)
    began = time.perf_counter()
    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", 8, seed=seed),
        n_steps=32,
        batch_size=256,
        n_epochs=20,
        learning_rate=lambda left: 1e-3 * left,
        clip_range=lambda left: 0.2 * left,
        gamma=0.98,
        gae_lambda=0.8,
        seed=seed,
        device="cpu",
    )
    made = time.perf_counter()
    model.learn(100_000, callback=StopAtTarget())
    ended = time.perf_counter()
    last = [info["r"] for info in model.ep_info_buffer]
    return {
        "train_s": ended - made,
        "call_s": ended - began,
        "steps": model.num_timesteps,
        "reached": statistics.fmean(last) >= TARGET,
    }


SYSTEMS = {"skate": skate_ppo, "stable-baselines3": stable_baselines3_ppo}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, default=ROOT / "benchmarks/results")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(SYSTEMS[arguments.only](arguments.seed)))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SYSTEMS}
    for seed in range(arguments.seeds):  # in turn: a slow minute falls on both
        for name in SYSTEMS:
            command = [sys.executable, "-m", "benchmarks.cartpole"]
            command += ["--only", name, "--seed", str(seed)]
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=True
            )
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(name, seed, found[name][-1], flush=True)
    for name, runs in found.items():
        train, call = (
            statistics.median(r[key] for r in runs) for key in ("train_s", "call_s")
        )
        print(f"{name:20} median of training {train:6.1f} s, of the call {call:6.1f} s")
    arguments.into.mkdir(parents=True, exist_ok=True)
    (arguments.into / "cartpole.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
