"""Models that change, remember, come in numbers and die, and wrong requests."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pytest
from polling import wait_until

import skate
from skate.serve import (
    Deployment,
    DrainingError,
    UnknownClientError,
    UnknownModelError,
    deploy,
    register_prometheus,
)

pytestmark = pytest.mark.usefixtures("engine")

FOREVER = 3600.0


class Version:
    """Answers each state with its weight, the second column with the same."""

    def __init__(self, weight: float = 0.0) -> None:
        self.weight = weight

    def evaluate(self, states: np.ndarray) -> np.ndarray:
        outputs = np.empty((len(states), 2))
        outputs[:, 0] = self.weight
        outputs[:, 1] = self.weight
        return outputs

    def set_weights(self, weight: np.ndarray) -> None:
        if np.shape(weight) != ():
            raise ValueError(f"weights of shape {np.shape(weight)}, expected ()")
        self.weight = float(weight)


class Minus:
    def evaluate(self, states: np.ndarray) -> np.ndarray:
        return -states


class Tree:
    def evaluate(self, states: Any) -> Any:
        image, (speed, height) = states["image"], states["body"]
        return {"sum": image.sum(axis=(1, 2)), "body": (speed + 1, height * 2)}


class Sums:
    """Recurrent: the output is the sum of all states of the client so far."""

    def initial_memory(self, n: int) -> tuple[np.ndarray]:
        return (np.zeros(n),)

    def evaluate(
        self, states: np.ndarray, memory: tuple[np.ndarray]
    ) -> tuple[np.ndarray, tuple[np.ndarray]]:
        total = memory[0] + states[:, 0]
        return total, (total,)


class Pid:
    def evaluate(self, states: np.ndarray) -> np.ndarray:
        return np.full(len(states), os.getpid())


class Gate:
    """Holds up its evaluation until a file is there."""

    def __init__(self, path: str) -> None:
        self.path = path

    def evaluate(self, states: np.ndarray) -> np.ndarray:
        assert wait_until(lambda: os.path.exists(self.path))
        return states


def ones(n: int = 1) -> np.ndarray:
    return np.ones((n, 1), np.float32)


# What goes in and comes out ---------------------------------------------------------


def test_states_and_outputs_may_be_trees_and_share_batches() -> None:
    with deploy(Tree, max_batch_size=3, batch_wait_s=FOREVER) as deployment:
        answers = []
        for n in (1, 2):
            image = np.full((n, 2, 2), n, np.float32)
            body = (np.full(n, n), np.full((n, 1), n))
            answers.append(deployment.submit({"image": image, "body": body}))
        for n, answer in zip((1, 2), answers, strict=True):
            outputs = answer.result()
            assert outputs["sum"].tolist() == [4 * n] * n
            assert outputs["body"][0].tolist() == [n + 1] * n
            assert outputs["body"][1].tolist() == [[2 * n]] * n
        assert deployment.stats()["batches"] == 1


def test_states_of_the_store_are_lent_and_can_be_filled_again() -> None:
    states = skate.empty((4, 500), np.float32)
    with deploy(Minus) as deployment:
        for value in (1.0, 2.0):
            states[:] = value
            assert (deployment.evaluate(states) == -value).all()
            answer = deployment.submit(states)
            assert (answer.result() == -value).all()
    assert states.flags.writeable


def test_map_keeps_the_order_with_several_in_flight() -> None:
    with deploy(Minus) as deployment:
        batches = (ones(2) * i for i in range(7))
        outputs = deployment.map(batches, in_flight=3)
        assert [part[0, 0] for part in outputs] == [-float(i) for i in range(7)]
        with pytest.raises(ValueError, match="in_flight=0"):
            next(deployment.map([], in_flight=0))


def test_answers_are_ordinary_futures() -> None:
    with deploy(Minus) as deployment:
        answers = [deployment.submit(ones()) for _ in range(3)]
        done, rest = wait(answers, timeout=60)
        assert len(done) == 3
        assert not rest
        called: list[Any] = []
        answers[0].add_done_callback(called.append)
        assert called == [answers[0]]
        assert answers[1].done()
        assert answers[1].exception() is None


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((1, 2), np.float32), np.zeros((1, 1)), np.zeros((1, 1, 1), np.float32)],
)
def test_states_unlike_the_first_ones_are_refused(wrong: np.ndarray) -> None:
    with deploy(Minus) as deployment:
        deployment.evaluate(ones())
        with pytest.raises(ValueError, match=r"takes states of float32 \(n, 1\)"):
            deployment.evaluate(wrong)
        assert deployment.evaluate(ones(2)).tolist() == [[-1], [-1]]
        assert deployment.stats()["batches"] == 2


def test_what_a_model_takes_can_be_declared() -> None:
    with (
        deploy(Minus, states=np.zeros((1, 3), np.float32)) as deployment,
        pytest.raises(ValueError, match=r"float32 \(n, 3\), and was sent float32"),
    ):
        deployment.evaluate(ones())


def test_requests_that_cannot_be_right_are_refused_where_they_are_made() -> None:
    with deploy(Minus, check_finite=True) as deployment:
        with pytest.raises(ValueError, match="NaN or infinity in row 1"):
            deployment.evaluate(np.array([[0.0], [np.nan]]))
        with pytest.raises(ValueError, match="hold Python objects"):
            deployment.evaluate(np.array([[None]]))
        with pytest.raises(ValueError, match=r"states\['b'\] has 2 rows"):
            deployment.evaluate({"a": ones(1), "b": ones(2)})
        with pytest.raises(ValueError, match="no arrays"):
            deployment.evaluate({})


# Versions ---------------------------------------------------------------------------


def test_weights_of_another_shape_are_refused_and_the_old_ones_stay() -> None:
    with deploy(Version, 5.0, num_replicas=2) as deployment:
        with pytest.raises(ValueError, match=r"weights of shape \(3,\)"):
            deployment.update(np.zeros(3))
        outputs, version = deployment.evaluate(ones(), return_version=True)
        assert (outputs[0, 0], version) == (5.0, 0)


def test_updates_from_several_processes_never_mix_in_an_answer() -> None:
    @skate.remote(num_cpus=0)
    def update(deployment: Deployment, n: int) -> list[int]:
        # Every version has a weight of its own: what comes back tells who was first.
        return [deployment.update(np.float64(n * 100 + i)) for i in range(20)]

    with deploy(Version, num_replicas=2, max_batch_size=8) as deployment:
        updaters = [update.remote(deployment, n) for n in (1, 2)]
        seen: dict[int, float] = {}
        while True:
            for n in (1, 3, 8):
                outputs, version = deployment.evaluate(ones(n), return_version=True)
                assert (outputs == outputs[0, 0]).all()
                assert seen.setdefault(version, outputs[0, 0]) == outputs[0, 0]
            if len(skate.wait(updaters, num_returns=2, timeout=0)[0]) == 2:
                break
        versions = sorted(skate.get(updaters[0]) + skate.get(updaters[1]))
        assert versions == list(range(1, 41))
        assert deployment.versions() == {"": 40}
        assert deployment.stats()["version_lag"] == 0


def test_a_reader_may_wait_for_a_version() -> None:
    with deploy(Version) as deployment:
        later = deployment.submit(ones(), min_version=2)
        deployment.update(np.float64(1))
        assert not later.done()
        deployment.update(np.float64(7))
        assert later.result()[0, 0] == 7.0
        with pytest.raises(skate.exceptions.GetTimeoutError):
            deployment.evaluate(ones(), min_version=3, timeout=0.01)


def test_a_model_is_replaced_by_one_of_another_class() -> None:
    with deploy(Version, 3.0) as deployment:
        assert deployment.evaluate(ones())[0, 0] == 3.0
        assert deployment.load(Minus) == 1
        outputs, version = deployment.evaluate(ones(), return_version=True)
        assert (outputs.tolist(), version) == ([[-1.0]], 1)
        with pytest.raises(ZeroDivisionError):
            deployment.load(BadConstructor)
        assert deployment.evaluate(ones()).tolist() == [[-1.0]]
        with pytest.raises(TypeError, match="cannot serve"):
            deployment.load(dict)


class BadConstructor(Minus):
    def __init__(self) -> None:
        raise ZeroDivisionError


# Several models, and memory ---------------------------------------------------------


def test_several_models_have_weights_and_batches_of_their_own() -> None:
    with deploy(
        Version, model_ids=["a", "b"], max_batch_size=2, batch_wait_s=FOREVER
    ) as deployment:
        assert deployment.update(np.float64(4), model_id="b") == 1
        pairs = [
            [deployment.submit(ones(), model_id=m) for m in ("a", "b")]
            for _ in range(2)
        ]
        for a, b in pairs:
            assert (a.result()[0, 0], b.result()[0, 0]) == (0.0, 4.0)
        assert deployment.versions() == {"a": 0, "b": 1}
        assert deployment.load(Minus, model_id="c") == 0
        assert deployment.evaluate(ones(2), model_id="c").tolist() == [[-1], [-1]]
        deployment.unload("a")
        with pytest.raises(UnknownModelError, match=r"no model 'a'.*'b', 'c'"):
            deployment.evaluate(ones(), model_id="a")
        with pytest.raises(UnknownModelError, match="no model without a model_id"):
            deployment.evaluate(ones())


def test_a_recurrent_model_remembers_each_client() -> None:
    with deploy(Sums, num_replicas=2) as deployment:

        def ask(client: Any, *values: float, reset: Any = False) -> list[float]:
            states = np.array(values)[:, None]
            outputs = deployment.evaluate(states, client=client, reset=reset)
            return list(outputs)

        assert ask("x", 1.0, 2.0, reset=True) == [1.0, 2.0]
        assert ask(7, 10.0, reset=True) == [10.0]
        assert ask("x", 1.0, 1.0) == [2.0, 3.0]
        assert ask("x", 1.0, 1.0, reset=[True, False]) == [1.0, 4.0]
        assert ask(7, 5.0) == [15.0]
        with pytest.raises(UnknownClientError, match="2 rows of memory and sent 1"):
            ask("x", 1.0)
        deployment.forget(7)
        with pytest.raises(UnknownClientError, match="reset=True"):
            ask(7, 1.0)
        with pytest.raises(ValueError, match="say whose states"):
            deployment.evaluate(ones())


@pytest.mark.differs(ray="requests in flight together may overtake each other")
def test_requests_of_a_recurrent_client_stay_in_order() -> None:
    with deploy(Sums, num_replicas=2) as deployment:
        sent = [deployment.submit(ones(), client="y", reset=i == 0) for i in range(3)]
        assert [float(one.result()[0]) for one in sent] == [1.0, 2.0, 3.0]


def test_a_model_without_memory_has_no_clients() -> None:
    with deploy(Minus) as deployment, pytest.raises(ValueError, match="initial_memory"):
        deployment.evaluate(ones(), client="x")


# Load, and ends ---------------------------------------------------------------------


def test_many_small_requests_of_several_processes_fill_the_batches() -> None:
    @skate.remote(num_cpus=0)
    def ask(deployment: Deployment) -> int:
        sent: deque[Any] = deque()
        states = np.ones((1, 1024), np.float32)
        answered = 0
        for _ in range(100):
            sent.append(deployment.submit(states))
            if len(sent) == 32:
                answered += len(sent.popleft().result())
        return answered + sum(len(one.result()) for one in sent)

    with deploy(Minus, batch_wait_s=0.002) as deployment:
        assert sum(skate.get([ask.remote(deployment) for _ in range(4)])) == 400
        stats = deployment.stats()
        assert stats["states"] == 400
        assert stats["batches"] < 400


@pytest.mark.differs(
    inline="evaluation cannot go on while the test looks",
    ray="a receiver's requests may wait in Ray, out of order, while it evaluates",
)
def test_a_cancelled_or_late_request_is_not_evaluated(tmp_path: Any) -> None:
    gate = tmp_path / "open"
    with deploy(Gate, str(gate), max_batch_size=1) as deployment:
        first = deployment.submit(ones())
        cancelled = deployment.submit(ones())
        assert cancelled.cancel()
        late = deployment.submit(ones(), timeout=0.001)
        with pytest.raises(skate.exceptions.GetTimeoutError):
            deployment.evaluate(ones(), timeout=0.01)
        gate.touch()  # by now the time of `late` is over, too
        assert first.result().tolist() == [[1.0]]
        with pytest.raises(skate.exceptions.GetTimeoutError, match="timeout passed"):
            late.result()
        assert deployment.stats()["batches"] == 1


@pytest.mark.differs(
    inline="it has no processes to kill",
    ray="a receiver's requests may wait in Ray, out of order, while it evaluates",
)
def test_what_a_dead_client_had_asked_for_is_dropped(tmp_path: Any) -> None:
    gate = tmp_path / "open"

    @skate.remote
    class Client:
        def ask(self, deployment: Deployment) -> int:
            self.sent = [deployment.submit(ones()) for _ in range(5)]
            return os.getpid()

    with deploy(Gate, str(gate), max_batch_size=1) as deployment:
        first = deployment.submit(ones())
        client = Client.remote()
        pid = skate.get(client.ask.remote(deployment))
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(skate.exceptions.ActorDiedError):
            skate.get(client.__ray_ready__.remote())
        gate.touch()
        first.result()
        assert deployment.evaluate(ones()).tolist() == [[1.0]]
        stats = deployment.stats()
        assert stats["batches"] == 2
        assert stats["queued"] == 0


@pytest.mark.differs(inline="it has no processes to kill")
@pytest.mark.parametrize("pure", [True, False])
def test_a_killed_replica_is_replaced_with_the_newest_weights(pure: bool) -> None:
    with deploy(PidAndVersion, num_replicas=2, pure=pure) as deployment:
        deployment.update(np.float64(9))
        stop: list[bool] = []

        def load() -> tuple[int, int]:
            answered = lost = 0
            while not stop:
                try:
                    assert deployment.evaluate(ones(3))[0, 1] == 9.0
                    answered += 1
                except skate.exceptions.ActorError:
                    lost += 1
            return answered, lost

        with ThreadPoolExecutor(4) as threads:
            callers = [threads.submit(load) for _ in range(4)]
            victim = int(deployment.evaluate(ones())[0, 0])
            os.kill(victim, signal.SIGKILL)
            pids: set[int] = set()

            def is_replaced() -> bool:
                if pure or not callers[0].done():
                    try:
                        pids.add(int(deployment.evaluate(ones())[0, 0]))
                    except skate.exceptions.ActorError:
                        assert not pure
                return len(pids - {victim}) == 2

            assert wait_until(is_replaced)
            stop.append(True)
            for caller in callers:
                answered, lost = caller.result()
                assert answered
                assert not (pure and lost)
        outputs, version = deployment.evaluate(ones(), return_version=True)
        assert (outputs[0, 1], version) == (9.0, 1)


class PidAndVersion(Version):
    def evaluate(self, states: np.ndarray) -> np.ndarray:
        outputs = super().evaluate(states)
        outputs[:, 0] = os.getpid()
        return outputs


@pytest.mark.differs(
    ray="a receiver's requests may wait in Ray, out of order, while it evaluates"
)
def test_a_drained_deployment_answers_what_it_has_and_takes_no_more() -> None:
    with deploy(Minus, batch_wait_s=0.01) as deployment:
        sent = [deployment.submit(ones()) for _ in range(5)]
        deployment.drain()
        assert [one.result().tolist() for one in sent] == [[[-1.0]]] * 5
        with pytest.raises(DrainingError, match="being closed"):
            deployment.evaluate(ones())


def test_statistics_tell_what_went_on() -> None:
    before = time.time()
    with deploy(Minus) as deployment:
        for n in (1, 2, 64):
            deployment.evaluate(ones(n))
        stats = deployment.stats()
        assert stats["requests"] == stats["batches"] == 3
        assert stats["states"] == 67
        assert stats["batch_sizes"] == {1: 1, 2: 1, 64: 1}
        assert stats["in_place_bytes"] == 67 * 4
        assert 0 < stats["busy_s"] < time.time() - before
        assert stats["replicas"] == 1


def test_statistics_can_be_scraped() -> None:
    prometheus = pytest.importorskip("prometheus_client")
    registry = prometheus.CollectorRegistry()
    with deploy(Minus) as deployment:
        register_prometheus(deployment, name="minus", registry=registry)
        deployment.evaluate(ones(3))
        text = prometheus.generate_latest(registry).decode()
    assert 'skate_serve_states_total{deployment="minus"} 3.0' in text
    assert 'skate_serve_queued{deployment="minus"} 0.0' in text
