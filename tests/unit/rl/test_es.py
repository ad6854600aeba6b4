import numpy as np

from skate.rl.es import centered_ranks, flatten, noise, unflatten
from skate.rl.policy import gaussian_weights


def test_ranks_are_centered_and_equal_values_rank_alike() -> None:
    found = centered_ranks(np.array([30.0, -1e9, 7.0, 7.0, 8.0]))
    np.testing.assert_allclose(found, [0.5, -0.5, -0.125, -0.125, 0.25])
    assert centered_ranks(np.full(4, 3.0)).tolist() == [0.0] * 4


def test_a_flat_policy_becomes_the_same_policy() -> None:
    weights = gaussian_weights([-1.0], [1.0], 3, (4, 5), seed=0)
    back = unflatten(flatten(weights), weights)
    assert back.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(back[name], array)


def test_noise_is_the_same_wherever_it_is_made() -> None:
    weights = gaussian_weights([-1.0], [1.0], 3, (4,), seed=0)
    one, other = noise((0, 1, 2), weights), noise((0, 1, 2), weights)
    np.testing.assert_array_equal(one, other)
    assert (one != noise((0, 1, 3), weights)).any()
