"""Counters, gauges and histograms that tasks, actors and the driver share.

>>> steps = Counter("env_steps", description="steps of all envs", tag_keys=("env",))
>>> steps.inc(64, tags={"env": "ant"})  # in any process
>>> collect()["env_steps"].samples
{(('env', 'ant'),): 64.0}

Each process keeps its own numbers, and sends what is new to the driver ten times a
second at most. ``register_prometheus()`` exports them by prometheus-client.
"""

from __future__ import annotations

import atexit
import bisect
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import skate

__all__ = [
    "Counter",
    "Gauge",
    "Histogram",
    "Metric",
    "Sample",
    "Series",
    "collect",
    "register_prometheus",
]

_VALID_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_FLUSH_S = 0.1

_Tags = tuple[tuple[str, str], ...]


@dataclass
class Sample:
    """What a histogram saw: how many values, their sum, and how many in each bucket."""

    count: int = 0
    sum: float = 0.0
    buckets: list[int] = field(default_factory=list)  # one more than boundaries


@dataclass
class Series:
    """One metric of all processes."""

    kind: str  # counter, gauge or histogram
    description: str
    boundaries: tuple[float, ...] = ()
    # Tags, as pairs, -> a number; of a histogram, a Sample.
    samples: dict[_Tags, Any] = field(default_factory=dict)

    def add(self, tags: _Tags, value: Any) -> None:
        """Take in a value, or what another process has seen."""
        if self.kind == "gauge":
            self.samples[tags] = float(value)
        elif self.kind == "counter":
            self.samples[tags] = self.samples.get(tags, 0.0) + value
        else:
            sample = self.samples.setdefault(
                tags, Sample(buckets=[0] * (len(self.boundaries) + 1))
            )
            if isinstance(value, Sample):
                sample.count += value.count
                sample.sum += value.sum
                for index, number in enumerate(value.buckets):
                    sample.buckets[index] += number
            else:
                sample.count += 1
                sample.sum += value
                sample.buckets[bisect.bisect_left(self.boundaries, value)] += 1


def _merge(into: dict[str, Series], more: Mapping[str, Series]) -> None:
    for name, series in more.items():
        known = into.setdefault(
            name, Series(series.kind, series.description, series.boundaries)
        )
        for tags, value in series.samples.items():
            known.add(tags, value)


class _Recorder:
    """What this process has recorded, and not sent yet if it is a worker."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the handler of a signal may record, too
        self._series: dict[str, Series] = {}
        self._timer: threading.Timer | None = None
        self._store: Any = None  # keeps the actor alive

    def record(self, metric: Metric, tags: _Tags, value: float) -> None:
        with self._lock:
            series = self._series.get(metric._name)
            if series is None:
                series = self._series.setdefault(metric._name, metric._series())
            series.add(tags, value)
            if self._timer is None and _is_worker_process():
                self._timer = threading.Timer(_FLUSH_S, self.flush)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Send what is new to the actor that gathers it."""
        with self._lock:
            news, self._series = self._series, {}
            self._timer = None
        if news:
            if self._store is None:
                atexit.register(self.flush)
                self._store = _store()
            self._store.add.remote(news)

    def collect(self) -> dict[str, Series]:
        found: dict[str, Series] = {}
        if skate.is_initialized() and not _is_alone():
            self._store = _store()
            _merge(found, skate.get(self._store.all.remote()))
        with self._lock:
            _merge(found, self._series)
        return found


class _Store:
    """The actor that gathers what workers send."""

    def __init__(self) -> None:
        self._series: dict[str, Series] = {}

    def add(self, news: dict[str, Series]) -> None:
        _merge(self._series, news)

    def all(self) -> dict[str, Series]:
        return self._series


def _store() -> Any:
    return (
        skate.remote(_Store)
        .options(name="metrics", namespace="skate.util", get_if_exists=True, num_cpus=0)
        .remote()
    )


def _is_alone() -> bool:
    """True if tasks run in the driver's process."""
    return skate.init(ignore_reinit_error=True).engine == "inline"


def _is_worker_process() -> bool:
    if not skate.is_initialized() or _is_alone():
        return False
    return skate.get_runtime_context().get_worker_id() is not None


_recorder = _Recorder()


class Metric:
    """What counters, gauges and histograms have in common. Use one of those."""

    _kind = ""

    def __init__(
        self,
        name: str,
        description: str = "",
        tag_keys: tuple[str, ...] | None = None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"the name of a metric must be a string, not {name!r}.")
        if tag_keys is not None and not isinstance(tag_keys, tuple):
            raise TypeError(f"tag_keys must be a tuple of strings, not {tag_keys!r}.")
        for key in tag_keys or ():
            if not isinstance(key, str):
                raise TypeError(f"tag_keys must be strings, not {key!r}.")
        self._discarded = _VALID_NAME.fullmatch(name) is None
        if self._discarded:
            warnings.warn(
                f"metric {name!r} will be discarded: a name has letters, digits and _, "
                "and does not begin with a digit.",
                UserWarning,
                stacklevel=3,
            )
        self._name = name
        self._description = description
        self._tag_keys = tag_keys or ()
        self._default_tags: dict[str, str] = {}

    def set_default_tags(self, default_tags: dict[str, str]) -> Any:
        """Tags for values that are recorded without them. Returns the metric."""
        self._check_tags(default_tags)
        self._default_tags = dict(default_tags)
        return self

    @property
    def info(self) -> dict[str, Any]:
        """Name, description, tag keys and default tags."""
        return {
            "name": self._name,
            "description": self._description,
            "tag_keys": self._tag_keys,
            "default_tags": self._default_tags,
        }

    def _series(self) -> Series:
        return Series(self._kind, self._description)

    def _record(self, value: Any, tags: dict[str, str] | None) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"a metric takes numbers, not {value!r}.")
        if tags:
            self._check_tags(tags)
        given = {**self._default_tags, **(tags or {})}
        missing = [key for key in self._tag_keys if key not in given]
        if missing:
            raise ValueError(f"metric {self._name} lacks the tags {missing!r}.")
        if not self._discarded:
            _recorder.record(self, tuple(sorted(given.items())), value)

    def _check_tags(self, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            if key not in self._tag_keys:
                raise ValueError(
                    f"metric {self._name} has no tag {key!r}: it was made with "
                    f"tag_keys={self._tag_keys!r}."
                )
            if not isinstance(value, str):
                raise TypeError(f"the value of tag {key!r} is no string: {value!r}.")

    def _state(self) -> tuple[Any, ...]:
        return self._name, self._description, self._tag_keys

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self._state(), self._default_tags)


def _restore(cls: Any, state: tuple[Any, ...], default_tags: dict[str, str]) -> Any:
    return cls(*state).set_default_tags(default_tags)


class Counter(Metric):
    """A number that only grows; over all processes, the sum."""

    _kind = "counter"

    def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        """Add ``value``, which must be more than zero."""
        if isinstance(value, (int, float)) and value <= 0:
            raise ValueError(f"a counter grows: {value!r} is not more than zero.")
        self._record(value, tags)


class Gauge(Metric):
    """A number that goes up and down; over all processes, the last that came."""

    _kind = "gauge"

    def set(self, value: float | None, tags: dict[str, str] | None = None) -> None:
        """Record ``value``; None does nothing."""
        if value is not None:
            self._record(value, tags)


class Histogram(Metric):
    """How values are distributed: counts of those up to each of ``boundaries``."""

    _kind = "histogram"

    def __init__(
        self,
        name: str,
        description: str = "",
        boundaries: Sequence[float] | None = None,
        tag_keys: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(name, description, tag_keys)
        if not boundaries or any(boundary <= 0 for boundary in boundaries):
            raise ValueError(
                f"boundaries must be numbers above zero, such as [0.1, 1.0], not "
                f"{boundaries!r}."
            )
        self.boundaries = sorted(boundaries)

    def observe(self, value: float, tags: dict[str, str] | None = None) -> None:
        """Count ``value``."""
        self._record(value, tags)

    @property
    def info(self) -> dict[str, Any]:
        """As of any metric, and the boundaries."""
        return {**super().info, "boundaries": self.boundaries}

    def _series(self) -> Series:
        return Series(self._kind, self._description, tuple(self.boundaries))

    def _state(self) -> tuple[Any, ...]:
        return self._name, self._description, self.boundaries, self._tag_keys


def collect() -> dict[str, Series]:
    """Every metric by name, with what all processes have recorded so far.

    Call it in the driver. What a worker recorded in the last tenth of a second, or
    just before it was killed, may be missing.
    """
    return _recorder.collect()


def register_prometheus(registry: Any = None) -> None:
    """Let prometheus-client export all metrics, in the driver.

    ``prometheus_client.start_http_server(8000)`` then serves them.

    Args:
        registry: of prometheus_client; None is its default one.
    """
    try:
        import prometheus_client
    except ImportError as error:
        raise ImportError(
            "register_prometheus needs prometheus-client, which is not installed: pip "
            "install 'skate[util]'."
        ) from error
    (registry or prometheus_client.REGISTRY).register(_Collector())


class _Collector:
    """What prometheus-client asks for the metrics."""

    def describe(self) -> list[Any]:
        return []  # the names are not known before they are used

    def collect(self) -> Iterator[Any]:
        from prometheus_client import metrics_core

        for name, series in collect().items():
            labels = sorted({key for tags in series.samples for key, _ in tags})
            families: dict[str, Any] = {
                "counter": metrics_core.CounterMetricFamily,
                "gauge": metrics_core.GaugeMetricFamily,
                "histogram": metrics_core.HistogramMetricFamily,
            }
            family = families[series.kind](name, series.description, labels=labels)
            for tags, value in series.samples.items():
                given = dict(tags)
                values = [given.get(key, "") for key in labels]
                if series.kind == "histogram":
                    family.add_metric(values, _cumulative(series, value), value.sum)
                else:
                    family.add_metric(values, value)
            yield family


def _cumulative(series: Series, sample: Sample) -> list[tuple[str, float]]:
    bounds = [*(str(float(b)) for b in series.boundaries), "+Inf"]
    total = 0
    found: list[tuple[str, float]] = []
    for bound, number in zip(bounds, sample.buckets, strict=True):
        total += number
        found.append((bound, total))
    return found
