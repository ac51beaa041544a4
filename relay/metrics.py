"""Metrics, in Prometheus' terms: base units, no label that grows with the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


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
        self.backlog = Gauge("relay_backlog_events", "Events in the outbox, sampled, by topic.", ["topic"], registry=r)
        self.oldest = Gauge("relay_oldest_event_age_seconds", "Age of the oldest event in the outbox.", registry=r)
        self.parked = Gauge("relay_parked_now_events", "Events that are parked now.", registry=r)
        self.paused_topics = Gauge("relay_paused_topics", "Topics that cannot be written at present.", registry=r)
        self.kafka_up = Gauge("relay_kafka_up", "1 while Kafka answers.", registry=r)
        self.database_up = Gauge("relay_database_up", "1 while the database answers.", registry=r)
        self.asleep = Gauge("relay_asleep", "1 while the relay waits for a commit to wake it.", registry=r)
        self.heartbeat = Gauge("relay_heartbeat_timestamp_seconds", "When the loop last turned.", registry=r)
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
