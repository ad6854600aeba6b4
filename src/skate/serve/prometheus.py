"""A deployment's statistics as Prometheus metrics, read when they are scraped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .deployment import Deployment

_COUNTERS = {
    "requests": "requests that came",
    "states": "states that came",
    "batches": "calls of the model",
    "failed": "requests answered with an error of the model",
    "refused": "requests refused because the queue was full",
    "late": "requests whose timeout passed before their turn",
    "dropped": "requests that were cancelled, or whose caller died",
    "updates": "updates of weights, in all replicas",
    "busy_s": "seconds in the model",
    "queue_s": "seconds that requests waited for the model",
    "in_place_bytes": "bytes of states evaluated where the client had put them",
}
_GAUGES = {
    "queued": "states that wait",
    "replicas": "replicas that answer",
    "version": "version that all replicas have",
    "version_lag": "versions that the slowest replica is behind",
}


class _Collector:
    """Asks the deployment, so that nothing is counted twice while it serves."""

    def __init__(self, deployment: Deployment, name: str) -> None:
        self._deployment = deployment
        self._name = name

    def describe(self) -> list[Any]:
        return []  # without it, registering would scrape

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        stats = self._deployment.stats()
        for families, kind in (
            (_COUNTERS, CounterMetricFamily),
            (_GAUGES, GaugeMetricFamily),
        ):
            for key, text in families.items():
                unit = key.replace("_s", "_seconds") if key.endswith("_s") else key
                family = kind(f"skate_serve_{unit}", text, labels=["deployment"])
                family.add_metric([self._name], float(stats[key]))
                yield family
        sizes = HistogramMetricFamily(
            "skate_serve_batch_size",
            "states in a call of the model",
            labels=["deployment"],
        )
        buckets, batches = [], 0
        for size, count in sorted(stats["batch_sizes"].items()):
            batches += count
            buckets.append((str(float(size)), batches))
        buckets.append(("+Inf", batches))
        sizes.add_metric([self._name], buckets, sum_value=float(stats["states"]))
        yield sizes


def register_prometheus(
    deployment: Deployment, *, name: str = "model", registry: Any = None
) -> Any:
    """Export ``deployment.stats()`` by prometheus-client; the registered collector.

    Args:
        deployment: asked at each scrape, and not otherwise.
        name: the label ``deployment`` of the metrics.
        registry: of prometheus-client; its default one, unless given. Unregister the
            collector there when the deployment is closed.

    Raises:
        ImportError: prometheus-client is not installed.
    """
    from prometheus_client import REGISTRY

    collector = _Collector(deployment, name)
    (REGISTRY if registry is None else registry).register(collector)
    return collector
