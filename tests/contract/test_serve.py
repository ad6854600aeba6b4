import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from polling import wait_until

import skate
from skate.serve import Deployment, QueueFullError, deploy

pytestmark = pytest.mark.usefixtures("engine")

FOREVER = 3600.0  # seconds: a batch that is not full is not due within any test


class Scale:
    """Multiplies by its weight; counts the states of each call."""

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def evaluate(self, states: np.ndarray) -> np.ndarray:
        if (states < 0).any():
            raise ValueError("negative state")
        return states * self.factor

    def set_weights(self, factor: float) -> None:
        if factor == 0:
            raise ValueError("a factor of zero")
        self.factor = factor


class SizeOfBatch:
    def evaluate(self, states: np.ndarray) -> np.ndarray:
        return np.full(len(states), len(states))


class Several:
    def evaluate(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return states + 1, states.sum(axis=1)


class Named:
    def evaluate(self, states: np.ndarray) -> dict[str, np.ndarray]:
        return {"twice": states * 2, "sum": states.sum(axis=1)}


class Short:
    def evaluate(self, states: np.ndarray) -> np.ndarray:
        return states[:-1]


class Broken:
    def __init__(self) -> None:
        raise OSError("no weights file")

    def evaluate(self, states: np.ndarray) -> np.ndarray:
        return states


@contextmanager
def served(model: type, *args: Any, **options: Any) -> Iterator[Deployment]:
    with deploy(model, *args, **options) as deployment:
        yield deployment


def states(n: int, first: float = 0.0) -> np.ndarray:
    return np.arange(first, first + 3 * n, dtype=np.float32).reshape(n, 3)


def test_answers_are_exactly_what_the_model_returns() -> None:
    with served(Scale, 3.0) as deployment:
        np.testing.assert_array_equal(deployment.evaluate(states(4)), states(4) * 3)
    with served(Several) as deployment:
        plus, total = deployment.evaluate(states(4))
        np.testing.assert_array_equal(plus, states(4) + 1)
        np.testing.assert_array_equal(total, states(4).sum(1))
    with served(Named) as deployment:
        answer = deployment.evaluate(states(4))
        assert list(answer) == ["twice", "sum"]
        np.testing.assert_array_equal(answer["twice"], states(4) * 2)


@pytest.mark.parametrize("model", [Several, Named, Scale])
def test_callers_that_share_a_batch_get_their_own_part(model: type) -> None:
    with served(model, max_batch_size=6, batch_wait_s=FOREVER) as deployment:
        answers = [
            deployment.submit(states(n, first=10 * n)).result
            for n in (1, 2, 3)  # together: one full batch
        ]
        got = [answer() for answer in answers]
        assert deployment.stats()["batches"] == 1
    local = model()
    for n, answer in zip((1, 2, 3), got, strict=True):
        expected = local.evaluate(states(n, first=10 * n))
        if isinstance(expected, dict):
            assert list(answer) == list(expected)
            answer, expected = list(answer.values()), list(expected.values())
        if not isinstance(expected, (list, tuple)):
            answer, expected = [answer], [expected]
        for a, e in zip(answer, expected, strict=True):
            np.testing.assert_array_equal(a, e)


def test_threads_of_one_driver_share_batches() -> None:
    with (
        served(SizeOfBatch, max_batch_size=4, batch_wait_s=FOREVER) as deployment,
        ThreadPoolExecutor(4) as threads,
    ):
        sizes = list(threads.map(deployment.evaluate, [states(1)] * 4))
        assert [size.tolist() for size in sizes] == [[4]] * 4


def test_a_full_batch_does_not_wait_for_others() -> None:
    with served(SizeOfBatch, max_batch_size=8, batch_wait_s=FOREVER) as deployment:
        early = deployment.submit(states(1))
        assert deployment.evaluate(states(8)).tolist() == [8] * 8
        assert not early.done()


def test_a_small_batch_is_evaluated_after_its_wait() -> None:
    with served(SizeOfBatch, batch_wait_s=0.001) as deployment:
        assert deployment.evaluate(states(2)).tolist() == [2, 2]


def test_each_update_makes_a_version_that_answers_carry() -> None:
    with served(Scale, 1.0) as deployment:
        assert deployment.evaluate(states(1), return_version=True)[1] == 0
        assert deployment.update(5.0) == 1
        assert deployment.update(6.0) == 2
        outputs, version = deployment.evaluate(states(1), return_version=True)
        assert version == 2
        np.testing.assert_array_equal(outputs, states(1) * 6)
        answer = deployment.submit(states(1))
        answer.result()
        assert answer.version == 2


def test_a_batch_is_never_answered_by_two_versions() -> None:
    with (
        served(Scale, 0.5, max_batch_size=8) as deployment,
        ThreadPoolExecutor(3) as threads,
    ):

        def ask(n: int) -> list[tuple[np.ndarray, int]]:
            ones = np.ones((n, 1), np.float32)
            return [deployment.evaluate(ones, return_version=True) for _ in range(50)]

        asked = [threads.submit(ask, n) for n in (1, 3, 8)]
        versions = [deployment.update(float(factor)) for factor in range(1, 31)]
        assert versions == list(range(1, 31))
        for answers in asked:
            for outputs, version in answers.result():
                # Version v was made by update(v); before the first, the factor is 0.5.
                np.testing.assert_array_equal(outputs, float(version) or 0.5)


def test_a_refused_update_keeps_the_weights_and_the_version() -> None:
    with served(Scale, 2.0) as deployment:
        with pytest.raises(ValueError, match="a factor of zero"):
            deployment.update(0.0)
        outputs, version = deployment.evaluate(states(1), return_version=True)
        assert version == 0
        np.testing.assert_array_equal(outputs, states(1) * 2)


def test_a_model_without_set_weights_cannot_be_updated() -> None:
    with (
        served(Several) as deployment,
        pytest.raises(TypeError, match="Several has no set_weights"),
    ):
        deployment.update({})


def test_replicas_are_updated_together() -> None:
    with served(Scale, 1.0, num_replicas=2) as deployment:
        assert deployment.update(7.0) == 1
        for _ in range(4):  # the replicas take turns
            outputs, version = deployment.evaluate(states(2), return_version=True)
            np.testing.assert_array_equal(outputs, states(2) * 7)
            assert version == 1
        stats = deployment.stats()
        assert (stats["requests"], stats["states"], stats["version"]) == (4, 8, 1)


def test_an_error_of_the_model_reaches_the_callers_of_that_batch_only() -> None:
    with served(Scale, max_batch_size=2, batch_wait_s=FOREVER) as deployment:
        wrong = [deployment.submit(-states(1, first=1)), deployment.submit(states(1))]
        for answer in wrong:
            with pytest.raises(ValueError, match="negative state"):
                answer.result()
        right = [deployment.submit(states(1)), deployment.submit(states(1))]
        for answer in right:
            np.testing.assert_array_equal(answer.result(), states(1) * 2)


def test_states_of_another_shape_or_dtype_never_share_a_batch() -> None:
    with served(
        SizeOfBatch, max_batch_size=2, batch_wait_s=FOREVER, states="any"
    ) as deployment:
        pairs = [
            np.zeros((1, 3), np.float32),
            np.zeros((1, 4), np.float32),
            np.zeros((1, 3), np.float64),
        ]
        answers = [deployment.submit(one) for one in pairs + pairs]
        assert [answer.result().tolist() for answer in answers] == [[2]] * 6


def test_outputs_that_are_not_one_for_each_state_are_refused() -> None:
    with (
        served(Short) as deployment,
        pytest.raises(ValueError, match=r"got 3 states and returned .* \(2, 3\)"),
    ):
        deployment.evaluate(states(3))


@pytest.mark.parametrize("wrong", [1.0, np.zeros((0, 3)), np.zeros((5, 3))])
def test_requests_of_a_wrong_size_are_refused_at_once(wrong: Any) -> None:
    with (
        served(Scale, max_batch_size=4) as deployment,
        pytest.raises(ValueError, match="n from 1 to max_batch_size=4"),
    ):
        deployment.evaluate(wrong)


def test_a_full_queue_refuses_and_says_so() -> None:
    deployment = deploy(Scale, max_queued=2, batch_wait_s=FOREVER)
    waiting = [deployment.submit(states(1)) for _ in range(2)]
    # On Ray the third may overtake the others, and would wait for ever in their place.
    assert wait_until(lambda: deployment.stats()["queued"] == 2)
    with pytest.raises(QueueFullError, match="max_queued is 2"):
        deployment.evaluate(states(1))
    deployment.close()
    for answer in waiting:
        with pytest.raises(skate.exceptions.ActorDiedError):
            answer.result()


def test_a_deployment_can_be_given_to_tasks_and_actors() -> None:
    @skate.remote
    def ask(deployment: Deployment) -> Any:
        return deployment.evaluate(states(2), return_version=True)

    @skate.remote
    class Asker:
        def __init__(self, deployment: Deployment) -> None:
            self.deployment = deployment

        async def ask(self) -> Any:
            return await self.deployment.aevaluate(states(2), return_version=True)

    with served(Scale) as deployment:
        deployment.update(4.0)
        asker = Asker.remote(deployment)
        for outputs, version in skate.get([ask.remote(deployment), asker.ask.remote()]):
            np.testing.assert_array_equal(outputs, states(2) * 4)
            assert version == 1


def test_a_coroutine_of_the_driver_can_ask() -> None:
    async def ask(deployment: Deployment) -> list[np.ndarray]:
        return await asyncio.gather(
            deployment.aevaluate(states(1)), deployment.aevaluate(states(2))
        )

    with served(Scale) as deployment:
        one, two = asyncio.run(ask(deployment))
        np.testing.assert_array_equal(one, states(1) * 2)
        np.testing.assert_array_equal(two, states(2) * 2)


def test_a_closed_deployment_answers_with_an_error() -> None:
    deployment = deploy(Scale)
    deployment.close()
    deployment.close()
    with pytest.raises(skate.exceptions.ActorDiedError):
        deployment.evaluate(states(1))


def test_a_model_that_cannot_be_made_fails_at_deploy() -> None:
    with pytest.raises(skate.exceptions.ActorDiedError, match="no weights file"):
        deploy(Broken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_replicas": 0}, "num_replicas=0; expected an integer of at least 1"),
        ({"max_batch_size": 1.5}, "max_batch_size=1.5; expected an integer"),
        ({"batch_wait_s": -1}, "batch_wait_s=-1; expected seconds"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deploy(Scale, **options)


def test_a_class_that_cannot_evaluate_is_refused() -> None:
    with pytest.raises(TypeError, match="needs a method evaluate"):
        deploy(dict)
