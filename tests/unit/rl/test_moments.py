import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from skate.rl.moments import RunningMoments


def alone(x: np.ndarray) -> np.ndarray:
    return x


def test_before_the_first_row_nothing_is_shifted_or_scaled() -> None:
    moments = RunningMoments(3, alone)
    np.testing.assert_array_equal(moments.mean, np.zeros(3))
    np.testing.assert_array_equal(moments.std, np.ones(3))


@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_moments_of_parts_are_those_of_the_whole(parts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(3.0, 2.0, (parts * 7, 4)).astype(np.float32)
    moments = RunningMoments(4, alone)
    for part in np.split(rows, parts):
        moments.add(part.reshape(7, 1, 4))
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-4)
    np.testing.assert_allclose(moments.std, rows.std(0), rtol=1e-3)


def test_every_rank_counts_the_rows_of_all() -> None:
    def doubled(x: np.ndarray) -> None:  # another rank that saw the same
        x *= 2

    moments = RunningMoments(1, doubled)
    moments.add(np.array([[1.0], [3.0]], np.float32))
    assert moments.sums[0, 0] == 4
    np.testing.assert_allclose(moments.mean, [2.0])
