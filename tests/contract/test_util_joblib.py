from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from polling import wait_until

import skate

joblib: Any = pytest.importorskip("joblib")
pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture(autouse=True)
def backend() -> Iterator[None]:
    from skate.util.joblib import register

    register()
    with joblib.parallel_config(backend="skate", n_jobs=2):
        yield


def all_cpus_taken() -> bool:
    """Ray counts what is in use a little later."""
    return wait_until(lambda: skate.available_resources()["CPU"] == 0)


def where(_: Any) -> Any:
    return skate.get_runtime_context().get_task_id()


def test_parallel_runs_as_tasks() -> None:
    ids = joblib.Parallel()(joblib.delayed(where)(i) for i in range(4))
    assert None not in ids


def test_results_come_in_order() -> None:
    jobs = (joblib.delayed(pow)(i, 2) for i in range(100))
    assert joblib.Parallel()(jobs) == [i * i for i in range(100)]
    jobs = (joblib.delayed(lambda x: -x)(i) for i in range(5))
    assert joblib.Parallel(batch_size=2)(jobs) == [0, -1, -2, -3, -4]


def test_results_may_come_as_a_generator() -> None:
    parallel = joblib.Parallel(return_as="generator")
    results = parallel(joblib.delayed(abs)(-i) for i in range(10))
    assert list(results) == list(range(10))


def test_an_error_is_raised_as_it_was() -> None:
    with pytest.raises(ZeroDivisionError):
        joblib.Parallel()(joblib.delayed(divmod)(1, i) for i in (1, 0))


def total(array: np.ndarray, row: int) -> tuple[float, bool]:
    return float(array[row].sum()), bool(array.flags.writeable)


def test_a_large_array_is_shared_and_read_only() -> None:
    array = np.ones((4, 50_000))
    found = joblib.Parallel()(joblib.delayed(total)(array, row=i) for i in range(4))
    assert found == [(50_000.0, False)] * 4


def nested(x: int) -> list[int]:
    return joblib.Parallel(n_jobs=2)(joblib.delayed(pow)(x, i) for i in range(3))


def test_parallel_inside_of_a_task_works() -> None:
    found = joblib.Parallel()(joblib.delayed(nested)(i) for i in range(3))
    assert found == [[1, 0, 0], [1, 1, 1], [1, 2, 4]]


def test_all_cpus_may_be_asked_for() -> None:
    with joblib.parallel_config(backend="skate", n_jobs=-1):
        assert joblib.effective_n_jobs(-1) == 2
    with joblib.parallel_config(
        backend="skate", n_jobs=1, ray_remote_args={"num_cpus": 2}
    ):
        (all_taken,) = joblib.Parallel(n_jobs=2)([joblib.delayed(all_cpus_taken)()])
    assert all_taken


def test_a_late_batch_that_cannot_be_pickled_is_an_error() -> None:
    values = [*[1] * 20, threading.Lock()]
    with (
        joblib.parallel_config(backend="skate"),
        pytest.raises(TypeError, match="cannot be pickled"),
    ):
        joblib.Parallel(n_jobs=2, batch_size=1, pre_dispatch=2)(
            joblib.delayed(str)(value) for value in values
        )
