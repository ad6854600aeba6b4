import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skate.rl.returns import gae

STEPS = st.integers(1, 12)
FLOATS = st.floats(-10, 10, width=32)


def arrays(shape: tuple[int, int]) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float32, shape, elements=FLOATS)


def one_env(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]  # (T, 1)


@given(st.data(), STEPS, st.floats(0, 1))
def test_with_lambda_one_an_advantage_is_the_discounted_return_less_the_value(
    data: st.DataObject, steps: int, gamma: float
) -> None:
    rewards, values, after = (data.draw(arrays((steps, 2))) for _ in range(3))
    never = np.zeros((steps, 2), bool)
    # Without an end, what follows step t is the observation of step t + 1.
    next_values = np.concatenate([values[1:], after[-1:]])
    found = gae(rewards, values, next_values, never, never, gamma=gamma, gae_lambda=1.0)
    returns = next_values[-1].astype(np.float64)
    for t in reversed(range(steps)):
        returns = rewards[t] + gamma * returns
        np.testing.assert_allclose(found[t], returns - values[t], atol=1e-3)


def test_a_terminated_step_is_worth_its_reward_alone() -> None:
    found = gae(
        rewards=one_env(1.0),
        values=one_env(0.25),
        next_values=one_env(100.0),
        terminated=np.array([[True]]),
        truncated=np.array([[False]]),
        gamma=0.9,
        gae_lambda=0.95,
    )
    np.testing.assert_allclose(found, [[0.75]])


def test_a_truncated_step_is_worth_what_would_have_followed() -> None:
    found = gae(
        rewards=one_env(1.0),
        values=one_env(0.25),
        next_values=one_env(100.0),
        terminated=np.array([[False]]),
        truncated=np.array([[True]]),
        gamma=0.9,
        gae_lambda=0.95,
    )
    np.testing.assert_allclose(found, [[1.0 + 90.0 - 0.25]], rtol=1e-6)


@given(st.data(), st.integers(2, 12), st.booleans())
def test_nothing_flows_back_over_the_end_of_an_episode(
    data: st.DataObject, steps: int, truncated: bool
) -> None:
    end = data.draw(st.integers(0, steps - 2))
    ended = np.zeros((steps, 1), bool)
    ended[end] = True
    never = np.zeros_like(ended)
    rewards, values, next_values = (data.draw(arrays((steps, 1))) for _ in range(3))
    ends = (never, ended) if truncated else (ended, never)
    options = {"gamma": 0.9, "gae_lambda": 0.95}
    before = gae(rewards, values, next_values, *ends, **options)
    rewards[end + 1 :] += 1000
    after = gae(rewards, values, next_values, *ends, **options)
    np.testing.assert_array_equal(before[: end + 1], after[: end + 1])
    assert (before[end + 1 :] != after[end + 1 :]).all()
