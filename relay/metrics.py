"""Metrics, in Prometheus' terms: base units, no label that grows with the data.

Counters and histograms are kept by those who count. Gauges are read when they are scraped, and absent where nothing is
known: a gauge that somebody set would go on saying it long after it was true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Reading(NamedTuple):
    """One gauge."""

    name: str
    meaning: str
    labels: tuple[str, ...] = ()


READINGS = (
    Reading("relay_backlog_events", "Events in the outbox, by topic; of 100,000 rows at most.", ("topic",)),
    Reading("relay_oldest_event_age_seconds", "Age of the oldest event in the outbox, 0 if it is empty."),
    Reading("relay_parked_now_events", "Events that are parked now."),
    Reading("relay_paused_topics", "Topics that cannot be written at present."),
    Reading("relay_kafka_up", "1 while Kafka answers, 0 while it does not; absent until it was asked."),
    Reading("relay_database_up", "1 while the database answers."),
    Reading("relay_asleep", "1 while the relay waits for a commit to wake it."),
    Reading("relay_heartbeat_timestamp_seconds", "When the loop last turned."),
)


class Readings(Collector):
    """All gauges, read at once for each scrape."""

    def __init__(self) -> None:
        self.source: Callable[[], Mapping[str, Mapping[tuple[str, ...], float]]] = dict
        """Values by labels, by name. What is absent in it is absent in the answer."""

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The gauges without their values."""
        for name, meaning, labels in READINGS:
            yield GaugeMetricFamily(name, meaning, labels=labels)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges of this moment."""
        values = self.source()
        for family in self.describe():
            for labels, value in values.get(family.name, {}).items():
                family.add_metric(labels, value)
            yield family


class Metrics:
    """All metrics of one relay process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.published = Counter("relay_published_events_total", "Events that Kafka has acknowledged.", registry=r)
        self.units = Counter("relay_units_total", "Units of work, by how they ended.", ["outcome"], registry=r)
        self.parked_total = Counter(
            "relay_parked_events_total",
            "Events taken out of their key's way, by policy.",
            ["policy"],
            registry=r,
        )
        # A series that begins with its first event has not increased by it, as Prometheus sees it.
        for policy in ("park", "block", "topic"):
            self.parked_total.labels(policy)
        self.possible_repeats = Counter(
            "relay_possible_repeats_total",
            "Events that may be published again: sent, and not settled.",
            registry=r,
        )
        self.rebuilds = Counter("relay_producer_rebuilds_total", "Producers replaced after a fatal error.", registry=r)
        self.database_losses = Counter("relay_database_losses_total", "Connections to the database lost.", registry=r)
        self.kafka_losses = Counter("relay_kafka_losses_total", "Times that Kafka was not available.", registry=r)
        self.fenced = Counter(
            "relay_fenced_units_total", "Units given up because this process stood still.", registry=r
        )
        self.floor_breaches = Counter(
            "relay_floor_breaches_total", "Rows found below a proven floor. Must stay zero.", registry=r
        )
        self.readings = Readings()
        r.register(self.readings)
        self.unit_rows = Histogram(
            "relay_unit_events",
            "Events of a unit.",
            buckets=(1, 3, 10, 30, 100, 300, 1000, 3000, 10_000),
            registry=r,
        )
        self.unit_seconds = Histogram(
            "relay_unit_seconds", "Duration of a unit, from claim to commit.", buckets=SECONDS, registry=r
        )
        self.publish_seconds = Histogram(
            "relay_publish_seconds",
            "Duration from the first row sent to the last report.",
            buckets=SECONDS,
            registry=r,
        )
        self.wait_seconds = Histogram(
            "relay_time_in_outbox_seconds", "Age of the oldest event of a unit when it was claimed.",
            buckets=SECONDS, registry=r,
        )  # fmt: skip

    def application(self) -> WSGIApplication:
        """Answers Prometheus in the format and encoding that it asks for."""
        return make_wsgi_app(self.registry)
