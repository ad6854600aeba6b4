from __future__ import annotations

import pickle
import sys
from typing import Any

import pytest
from polling import wait_until

import skate
from skate.util import metrics
from skate.util.metrics import Counter, Gauge, Histogram, Metric, collect

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_recorder", metrics._Recorder())


def value_of(name: str, **tags: str) -> Any:
    series = collect().get(name)
    return None if series is None else series.samples.get(tuple(sorted(tags.items())))


@skate.remote
def count(counter: Counter, number: int) -> None:
    for _ in range(number):
        counter.inc(2, tags={"env": "ant"})


@pytest.mark.differs(
    ray="what gathers them ends with the worker that began it; use Ray's metrics"
)
def test_a_counter_adds_up_over_all_processes() -> None:
    counter = Counter("steps", tag_keys=("env",))
    counter.inc(tags={"env": "ant"})
    counter.inc(5, tags={"env": "walker"})
    skate.get([count.remote(counter, 10) for _ in range(5)])
    assert wait_until(lambda: value_of("steps", env="ant") == 101)
    assert value_of("steps", env="walker") == 5
    assert collect()["steps"].kind == "counter"


@skate.remote
class Worker:
    def __init__(self, gauge: Gauge) -> None:
        self.gauge = gauge

    def set(self, value: float) -> None:
        self.gauge.set(value)


@pytest.mark.differs(
    ray="what gathers them ends with the worker that began it; use Ray's metrics"
)
def test_a_gauge_keeps_the_last_value() -> None:
    gauge = Gauge("size")
    gauge.set(1)
    gauge.set(None)
    assert value_of("size") == 1
    gauge = Gauge("level")
    worker = Worker.remote(gauge)
    skate.get([worker.set.remote(1), worker.set.remote(0.5)])
    assert wait_until(lambda: value_of("level") == 0.5)


@pytest.mark.differs(
    ray="what gathers them ends with the worker that began it; use Ray's metrics"
)
def test_a_histogram_counts_in_buckets() -> None:
    histogram = Histogram("seconds", "how long", boundaries=[0.1, 1.0])

    @skate.remote
    def observe(histogram: Histogram) -> None:
        for value in (0.05, 0.5, 1.0, 7):
            histogram.observe(value)

    histogram.observe(0.01)
    skate.get([observe.remote(histogram) for _ in range(2)])

    def sample() -> Any:
        return value_of("seconds")

    assert wait_until(lambda: sample() is not None and sample().count == 9)
    assert sample().buckets == [3, 4, 2]
    assert sample().sum == pytest.approx(17.11)


@pytest.mark.differs(
    ray="what gathers them ends with the worker that began it; use Ray's metrics"
)
def test_default_tags_stand_for_those_that_are_not_given() -> None:
    counter = Counter("calls", "d", tag_keys=("a", "b"))
    assert counter.set_default_tags({"a": "1"}) is counter
    counter.inc(tags={"b": "2"})
    counter.inc(tags={"a": "3", "b": "2"})
    assert value_of("calls", a="1", b="2") == value_of("calls", a="3", b="2") == 1
    copy = pickle.loads(pickle.dumps(counter))
    assert copy.info == counter.info
    assert copy.info == {
        "name": "calls",
        "description": "d",
        "tag_keys": ("a", "b"),
        "default_tags": {"a": "1"},
    }
    assert pickle.loads(pickle.dumps(Histogram("h", boundaries=[1]))).boundaries == [1]


def test_what_is_wrong_is_refused() -> None:
    counter = Counter("calls", tag_keys=("a",))
    for error, call in (
        (ValueError, lambda: counter.inc()),
        (ValueError, lambda: counter.inc(tags={"b": "1"})),
        (ValueError, lambda: counter.inc(0, tags={"a": "1"})),
        (TypeError, lambda: counter.inc("1", tags={"a": "1"})),  # type: ignore[arg-type]
        (TypeError, lambda: counter.inc(tags={"a": 1})),  # type: ignore[dict-item]
        (ValueError, lambda: counter.set_default_tags({"b": "1"})),
        (ValueError, lambda: Counter("")),
        (TypeError, lambda: Counter("c", tag_keys=["a"])),  # type: ignore[arg-type]
        (TypeError, lambda: Counter("c", tag_keys=(1,))),  # type: ignore[arg-type]
        (ValueError, lambda: Histogram("h")),
        (ValueError, lambda: Histogram("h", boundaries=[0, 1])),
    ):
        with pytest.raises(error):
            call()
    with pytest.warns(UserWarning, match="discarded"):
        Gauge("no-such-name").set(1)
    assert collect() == {}
    assert isinstance(counter, Metric)


def test_prometheus_exports_all_metrics() -> None:
    prometheus = pytest.importorskip("prometheus_client")
    registry = prometheus.CollectorRegistry()
    metrics.register_prometheus(registry)
    Counter("steps", "of envs", tag_keys=("env",)).inc(3, tags={"env": "ant"})
    Gauge("level").set(2)
    Histogram("seconds", boundaries=[1.0]).observe(0.5)
    text = prometheus.generate_latest(registry).decode()
    for line in (
        "# HELP steps_total of envs",
        'steps_total{env="ant"} 3.0',
        "level 2.0",
        'seconds_bucket{le="1.0"} 1.0',
        'seconds_bucket{le="+Inf"} 1.0',
        "seconds_sum 0.5",
    ):
        assert line in text


def test_without_prometheus_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r"skate\[util\]"):
        metrics.register_prometheus()
