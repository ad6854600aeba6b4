from pathlib import Path

import numpy as np
import pytest

from skate.rl.policy import (
    CategoricalPolicy,
    DeterministicPolicy,
    GaussianPolicy,
    categorical_weights,
    gaussian_weights,
)
from skate.rl.run_files import load_policy, save_policy


def some_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Of a policy that has learnt something: every part of it matters."""
    weights = gaussian_weights([-2.0, 0.0], [2.0, 1.0], 3, (16, 8), seed)
    rng = np.random.default_rng(seed)
    for name in ("w2", "b0", "b1", "b2", "log_std", "observation_mean"):
        weights[name] += rng.normal(size=weights[name].shape).astype(np.float32)
    weights["observation_std"] *= 3
    return weights


def some_observations(n: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, 3)).astype(np.float32)


def test_a_new_policy_acts_near_the_middle_of_the_bounds() -> None:
    weights = gaussian_weights([-2.0, 0.0], [2.0, 1.0], 3, (16,), seed=0)
    means = GaussianPolicy(weights).mean(some_observations(50))
    np.testing.assert_allclose(means, np.tile([0.0, 0.5], (50, 1)), atol=0.2)


def test_the_served_policy_computes_what_torch_trains() -> None:
    torch = pytest.importorskip("torch")
    from skate.rl.network import network
    from skate.rl.policy import scale

    weights, observations = some_weights(), some_observations(20)
    scaled = scale(
        observations, weights["observation_mean"], weights["observation_std"]
    )
    with torch.no_grad():
        trained = network(weights)(torch.from_numpy(scaled)).numpy()
    expected = weights["action_center"] + weights["action_scale"] * trained
    served = GaussianPolicy(weights).mean(observations)
    np.testing.assert_allclose(served, expected, rtol=1e-4, atol=1e-5)


def test_log_probs_are_the_density_of_the_drawn_actions() -> None:
    torch = pytest.importorskip("torch")
    weights, observations = some_weights(), some_observations(20)
    policy = GaussianPolicy(weights, seed=3)
    drawn = policy.evaluate(observations)
    density = torch.distributions.Normal(
        torch.from_numpy(policy.mean(observations)),
        torch.from_numpy(np.exp(weights["log_std"]) * weights["action_scale"]),
    )
    expected = density.log_prob(torch.from_numpy(drawn["actions"])).sum(1)
    np.testing.assert_allclose(drawn["log_probs"], expected, rtol=1e-3, atol=1e-3)
    assert drawn["actions"].shape == (20, 2)
    assert drawn["actions"].dtype == drawn["log_probs"].dtype == np.float32


def test_discrete_actions_are_drawn_by_their_probabilities() -> None:
    weights = categorical_weights(3, 3, (16,), seed=0)
    weights["b1"] += np.log([0.2, 0.3, 0.5]).astype(np.float32)
    policy = CategoricalPolicy(weights, seed=3)
    drawn = policy.evaluate(some_observations(20_000))
    share = np.bincount(drawn["actions"], minlength=3) / 20_000
    np.testing.assert_allclose(share, [0.2, 0.3, 0.5], atol=0.02)
    every = policy.log_probs(some_observations(20_000))
    np.testing.assert_allclose(np.exp(every).sum(1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(
        drawn["log_probs"], every[np.arange(20_000), drawn["actions"]]
    )


def test_torch_computes_the_probabilities_that_the_served_policy_recorded() -> None:
    torch = pytest.importorskip("torch")
    from skate.rl.distribution import distribution
    from skate.rl.network import network
    from skate.rl.policy import policy_class, scale

    discrete = categorical_weights(3, 3, (16,), seed=0)
    discrete["w1"] *= 100
    for weights in (some_weights(), discrete):
        observations = some_observations(20)
        drawn = policy_class(weights)(weights, seed=1).evaluate(observations)
        learnt = distribution(weights)
        scaled = scale(
            observations, weights["observation_mean"], weights["observation_std"]
        )
        with torch.no_grad():
            outputs = network(weights)(torch.from_numpy(scaled))
            found = learnt.log_probs(outputs, learnt.tensor(drawn["actions"]))
        recorded = learnt.log_probs_served(drawn["log_probs"])
        np.testing.assert_allclose(found.numpy(), recorded, rtol=1e-3, atol=1e-3)


def test_the_deterministic_policy_takes_the_most_probable_action() -> None:
    weights = categorical_weights(3, 3, (16,), seed=0)
    weights["b1"][1] += 1
    assert DeterministicPolicy(weights)(some_observations(1)[0]) == 1


def test_a_refused_update_leaves_the_old_weights() -> None:
    policy = GaussianPolicy(some_weights())
    observations = some_observations(4)
    before = policy.mean(observations)
    incomplete = some_weights(seed=1)
    del incomplete["log_std"]
    with pytest.raises(KeyError):
        policy.set_weights(incomplete)
    np.testing.assert_array_equal(policy.mean(observations), before)


def test_the_deterministic_policy_stays_within_the_bounds() -> None:
    weights = some_weights()
    weights["b2"] += np.float32(100)
    action = DeterministicPolicy(weights)(some_observations(1)[0])
    np.testing.assert_array_equal(action, np.array([2.0, 1.0], np.float32))


def test_a_saved_policy_acts_as_before(tmp_path: Path) -> None:
    weights = some_weights()
    save_policy(tmp_path, weights)
    observation = some_observations(1)[0]
    loaded = load_policy(tmp_path)(observation)
    np.testing.assert_array_equal(loaded, DeterministicPolicy(weights)(observation))
    assert [p.name for p in tmp_path.iterdir()] == ["policy.npz"]


def test_loading_a_policy_from_elsewhere_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no policy\.npz"):
        load_policy(tmp_path)
