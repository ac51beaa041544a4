"""The figures of caches for Prometheus: `REGISTRY.register(CacheCollector(cache.numbers))`. Needs prometheus-client."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from relay.cache.numbers import AGES, METRICS, Distribution, Metric, Numbers

PREFIX = "relay_cache_"


class CacheCollector:
    """A collector that reads the figures when it is asked for them: counting costs the same with and without it."""

    def __init__(self, numbers: Numbers) -> None:
        # Before anything is registered: a collector that fails at the first scrape takes all metrics with it.
        from prometheus_client import core

        self._core = core
        self._numbers = numbers

    def collect(self) -> Iterator[Any]:
        """Every metric with every combination of labels that occurred."""
        families = {metric: self._family(metric) for metric in METRICS}
        for metric, labels, figure in self._numbers.snapshot().rows():
            values = list(labels.values())
            if isinstance(figure, Distribution):
                ends = [*(f"{end:g}" for end in AGES), "+Inf"]
                families[metric].add_metric(values, list(zip(ends, accumulate(figure.counts), strict=True)), figure.sum)
            else:
                families[metric].add_metric(values, figure)
        yield from families.values()

    def describe(self) -> Iterator[Any]:
        """The same without figures: registering asks nobody for any."""
        for metric in METRICS:
            yield self._family(metric)

    def _family(self, metric: Metric) -> Any:
        kinds = {
            "counter": self._core.CounterMetricFamily,
            "gauge": self._core.GaugeMetricFamily,
            "histogram": self._core.HistogramMetricFamily,
        }
        return kinds[metric.kind](PREFIX + metric.name, metric.meaning, labels=metric.labels)
