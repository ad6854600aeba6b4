import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skate import rl, sim, train

for module in ("gymnasium", "torch", "matplotlib", "PIL"):
    pytest.importorskip(module)

pytestmark = pytest.mark.usefixtures("engine")

SMALL: dict[str, Any] = {
    "num_workers": 2,
    "num_envs_per_worker": 4,
    "rollout_length": 32,
    "eval_episodes": 2,
    "progress": False,
}
STEPS = 2 * 4 * 32  # of one update


def learn(out: Path, updates: int, **options: Any) -> rl.Result:
    return rl.train(
        "ppo",
        "Pendulum-v1",
        out=out,
        total_steps=updates * STEPS,
        **(SMALL | options),
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()
    ]


def test_a_run_leaves_all_its_files(tmp_path: Path, engine: str) -> None:
    pytest.importorskip("pygame")
    result = learn(tmp_path / "run", updates=3)
    assert result.path == tmp_path / "run"
    names = {path.name for path in result.path.iterdir()}
    assert names - {"tensorboard"} == {
        "checkpoint.pkl",
        "config.json",
        "learning_curve.png",
        "metrics.jsonl",
        "policy.gif",
        "policy.npz",
        "result.json",
    }
    summary = json.loads((result.path / "result.json").read_text())
    assert summary == result.summary
    assert summary["engine"] == engine
    assert summary["env_steps"] == 3 * STEPS
    assert summary["policy_versions"] == 4
    for part in ("simulation", "serving", "training"):
        assert summary[f"{part}_busy_s"] > 0
    assert [line["updates"] for line in lines(result.path)] == [1, 2, 3]
    assert "mean return" in str(result)


def test_every_training_action_came_from_the_deployment(tmp_path: Path) -> None:
    summary = learn(tmp_path / "run", updates=6).summary
    # What was trained on had been served; beyond it, workers are at most one rollout
    # each ahead.
    assert 0 <= summary["served_states"] - 6 * STEPS <= STEPS
    # The versions that the answers carried: never newer than the learner's, and old
    # by the rollout that went on during an update, at most by a few.
    assert 0 <= summary["policy_lag_max"] <= 3
    assert all(line["policy_lag"] >= 0 for line in lines(tmp_path / "run"))


def test_the_evaluation_can_be_repeated_from_the_files(tmp_path: Path) -> None:
    result = learn(tmp_path / "run", updates=1, seed=3)
    policy = rl.load_policy(tmp_path / "run")
    again = rl.evaluate(policy, "Pendulum-v1", episodes=2, seed=3)
    assert again.mean == result.summary["mean_return"]
    action = policy(np.array([1.0, 0.0, 0.0]))
    assert action.shape == (1,)
    assert abs(float(action[0])) <= 2.0


def test_a_resumed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    learn(tmp_path / "run", updates=2)
    before = train.load_checkpoint(tmp_path / "run")
    summary = learn(tmp_path / "run", updates=5, resume=True).summary
    assert summary["env_steps"] == 5 * STEPS
    assert summary["policy_versions"] == 6
    assert summary["served_states"] >= 5 * STEPS
    assert [line["updates"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4, 5]
    after = train.load_checkpoint(tmp_path / "run")
    steps = [c["learner"]["optimizer"]["state"][0]["step"] for c in (before, after)]
    assert steps[1] == steps[0] / 2 * 5
    assert after["totals"]["wall_s"] > before["totals"]["wall_s"]


def test_discrete_actions_are_learnt_and_evaluated_too(tmp_path: Path) -> None:
    options = SMALL | {"target_return": 0.0, "total_steps": 100 * STEPS}
    result = rl.train("ppo", "CartPole-v1", out=tmp_path / "run", **options)
    # A new policy drops the pole within 30 steps, and 100 episodes are the target.
    assert result.summary["updates"] < 100
    policy = rl.load_policy(tmp_path / "run")
    assert policy(np.zeros(4)) in (0, 1)
    again = rl.evaluate(policy, "CartPole-v1", episodes=2, seed=0)
    assert again.mean == result.summary["mean_return"]


def test_evolution_strategies_learn_resume_and_are_evaluated(tmp_path: Path) -> None:
    settings = rl.ESSettings(pairs=4, hidden=(8,))
    options: dict[str, Any] = {
        "out": tmp_path / "run",
        "settings": settings,
        "eval_episodes": 2,
        "progress": False,
    }
    first = rl.train("es", "CartPole-v1", total_steps=1, **options).summary
    assert first["updates"] == 1
    assert first["env_steps"] >= 8
    second = rl.train(
        "es", "CartPole-v1", total_steps=first["env_steps"] + 1, resume=True, **options
    ).summary
    assert second["updates"] == 2
    again = rl.evaluate(rl.load_policy(tmp_path / "run"), "CartPole-v1", episodes=2)
    assert again.mean == second["mean_return"]
    with pytest.raises(ValueError, match="num_workers: of PPO alone"):
        rl.train("es", "CartPole-v1", num_workers=2, **options)


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(tmp_path: Path) -> None:
    first = learn(tmp_path / "run", updates=2).summary
    second = learn(tmp_path / "run", updates=2, resume=True).summary
    assert second == first


def test_a_run_is_not_overwritten_unless_one_says_so(tmp_path: Path) -> None:
    learn(tmp_path / "run", updates=2)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds a run already"):
        learn(tmp_path / "run", updates=1)
    learn(tmp_path / "run", updates=1, overwrite=True)
    assert [line["updates"] for line in lines(tmp_path / "run")] == [1]
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_run_is_resumed_with_its_own_settings_only(tmp_path: Path) -> None:
    learn(tmp_path / "run", updates=1)
    with pytest.raises(ValueError, match="was set up with rollout_length=32"):
        learn(tmp_path / "run", updates=2, resume=True, rollout_length=16)


@pytest.mark.parametrize("sync", ["allreduce", "parameter_server"])
def test_several_learners_share_the_batch(tmp_path: Path, sync: str) -> None:
    path = tmp_path / "run"
    summary = learn(path, updates=2, num_learners=2, sync=sync).summary
    assert summary["env_steps"] == 2 * STEPS
    assert summary["served_states"] >= 2 * STEPS
    summary = learn(path, updates=3, num_learners=2, sync=sync, resume=True).summary
    assert summary["env_steps"] == 3 * STEPS


def trajectory(rank: int, update: int) -> sim.Trajectory:
    rng = np.random.default_rng((rank, update))
    never = np.zeros((16, 4), bool)
    return sim.Trajectory(
        worker=rank,
        observations=rng.normal(size=(17, 4, 3)).astype("f4"),
        actions=rng.normal(size=(16, 4, 1)).astype("f4"),
        rewards=rng.normal(size=(16, 4)).astype("f4"),
        terminated=never,
        truncated=never,
        final_observations=np.zeros((0, 3), "f4"),
        policy_versions=np.zeros(16, np.int64),
        extras={"log_probs": np.full((16, 4), -1, "f4")},
        episode_returns=np.zeros(0, "f4"),
        simulate_s=0.0,
        policy_s=0.0,
    )


def learn_both_ways(config: Any) -> None:
    from skate.rl.ppo import PPO

    initial, server = config
    context = train.context()
    settings = rl.PPOSettings(epochs=2, minibatch_size=32, max_gradient_norm=0.1)
    learners = [PPO(initial, settings, context, 0, s) for s in (None, server)]
    for update in range(3):
        batch = [trajectory(context.rank, update)]
        for learner in learners:
            learner.update(batch, 1e-2)
    weights = [
        np.concatenate([w.ravel() for w in learner.weights().values()])
        for learner in learners
    ]
    top = context.allreduce(weights[1].copy(), "max")
    context.report({"weights": weights, "equal": bool((top == weights[1]).all())})


def test_learners_take_the_same_steps_by_either_way() -> None:
    from skate.rl.exchange import gradient_server
    from skate.rl.policy import gaussian_weights

    initial = gaussian_weights([-2.0], [2.0], 3, (16, 8), seed=0)
    server = gradient_server(initial, 2)
    said = train.run(learn_both_ways, 2, config=(initial, server)).metrics
    server.close()
    allreduce, served = said["weights"]
    np.testing.assert_allclose(served, allreduce, rtol=1e-4, atol=1e-5)
    begun = np.concatenate([w.ravel() for w in initial.values()])
    assert np.abs(served - begun).max() > 0.01
    assert said["equal"]


@pytest.mark.parametrize(
    ("algo", "env", "options", "message"),
    [
        ("pp0", "Pendulum-v1", {}, "unknown algorithm 'pp0'. Did you mean ppo"),
        ("ppo", "Pendulun-v1", {}, "no environment 'Pendulun-v1'.*Pendulum-v1"),
        ("ppo", "FrozenLake-v1", {}, "needs vectors"),
        ("ppo", "Pendulum-v1", {"total_steps": 0}, "total_steps=0; expected at least"),
        ("ppo", "Pendulum-v1", {"num_learners": 3}, "cannot be shared equally"),
        ("ppo", "Pendulum-v1", {"sync": "mail"}, "sync='mail'; expected 'allreduce'"),
    ],
)
def test_wrong_names_and_numbers_are_refused(
    tmp_path: Path, algo: str, env: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rl.train(algo, env, out=tmp_path / "run", **(SMALL | options))
    assert not (tmp_path / "run").exists()
