"""What is counted and measured of caches, sessions and consumers: the metrics, and where they are kept.

Nothing is exported from here. `Numbers` keeps the figures of one process; `relay.cache.prometheus` shows them to
Prometheus, and `Numbers.as_data()` to anything else. No label grows with the data: a cache's name is the largest.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol

AGES: Final = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 600, 3600)
"""Upper ends of the buckets, in seconds."""


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """A metric in Prometheus' terms: its name without the prefix `relay_cache_`, its labels and what it means."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str


READS: Final = Metric(
    "reads_total",
    "counter",
    ("cache", "tier", "result"),
    "Reads, by the tier that answered (local, shared, source) and how: hit, negative, stale, miss, off, error.",
)
SERVED_AGE: Final = Metric(
    "served_age_seconds",
    "histogram",
    ("cache", "tier"),
    "For how long at most what was served may have been out of date: since its load or its feed's last proof; sampled.",
)
REJECTS: Final = Metric(
    "rejected_fills_total",
    "counter",
    ("cache", "tier", "reason"),
    "Loaded values that were served and not kept: floor, lease, epoch, generation, closed, deadline, stamps, unknown,"
    " too_large, replica (the loader said that it must not be kept).",
)
LOADS: Final = Metric("loads_total", "counter", ("cache", "outcome"), "Calls of loaders: ok, old, error, refused.")
LOAD_SECONDS: Final = Metric("load_seconds", "histogram", ("cache",), "Duration of a call of a loader.")
SAVED: Final = Metric(
    "loads_saved_total",
    "counter",
    ("cache", "by"),
    "Reads that waited for a load of others: flight in this process, lease in another one.",
)
UPGRADES: Final = Metric(
    "session_upgrades_total",
    "counter",
    ("cache",),
    "Reads of what a session wrote or saw that the source had to answer.",
)
SESSION_TOKENS: Final = Metric(
    "session_tokens_total",
    "counter",
    ("result",),
    "Session tokens: taken; refused as oversized, malformed, forged or expired; lost or not_kept by the store.",
)
TIER_ERRORS: Final = Metric(
    "tier_errors_total",
    "counter",
    ("tier", "reason"),
    "Calls of a tier that failed, or found it closed; reads went on without it.",
)
BREAKER_OPEN: Final = Metric("breaker_open", "gauge", ("tier",), "1 while a tier that kept failing is not asked.")
TIER_OPEN: Final = Metric("tier_open", "gauge", ("tier",), "1 while what lies in the tier may be served.")
EPOCHS: Final = Metric(
    "epoch_changes_total", "counter", ("cause",), "New epochs that this process began; all before is void."
)
LOCAL_ENTRIES: Final = Metric("local_entries", "gauge", (), "Entries of the process tier.")
EVICTIONS: Final = Metric("local_evictions_total", "counter", (), "Entries of the process tier that had to make room.")
EVENTS: Final = Metric(
    "events_total",
    "counter",
    ("consumer", "result"),
    "Events: applied, ignored (of no concern), malformed, failed (its hook kept failing).",
)
EVENT_LAG: Final = Metric(
    "event_lag_seconds", "histogram", ("consumer",), "From the time of the change, in the event, until it was applied."
)
FEED_SILENCE: Final = Metric(
    "feed_silence_seconds", "gauge", ("consumer",), "How long ago the consumer has heard from all of its partitions."
)

METRICS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All of them, in the order of this file."""


class Recorder(Protocol):
    """What the cache and the consumer tell. Safe from any thread; never raises."""

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Adds to a counter. Labels in the order of `metric.labels`."""
        ...

    def measure(self, metric: Metric, *labels: str, value: float) -> None:
        """One value into a histogram."""
        ...

    def ask(self, source: Callable[[], Iterable[Sample]]) -> None:
        """Calls `source` whenever the figures are read: for gauges, and for what is counted elsewhere."""
        ...


class Sample(NamedTuple):
    """One figure, as a source gives it: it is added to what was counted of the same labels."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


@dataclass(slots=True)
class Distribution:
    """A histogram: how many values lie in each bucket, the last of them without an end, and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(AGES) + 1))
    sum: float = 0.0

    def add(self, value: float) -> None:
        """One more value, in seconds."""
        self.counts[bisect_left(AGES, value)] += 1
        self.sum += value

    @property
    def total(self) -> int:
        """How many values there are."""
        return sum(self.counts)


class Snapshot(NamedTuple):
    """All figures at one moment."""

    values: Mapping[tuple[Metric, tuple[str, ...]], float]
    """Counters and gauges."""
    distributions: Mapping[tuple[Metric, tuple[str, ...]], Distribution]

    def value(self, metric: Metric, *labels: str) -> float:
        """One counter or gauge; 0 if nothing was said of it."""
        return self.values.get((metric, labels), 0)

    def total(self, metric: Metric) -> float:
        """A counter over all of its labels."""
        return sum(value for (known, _), value in self.values.items() if known is metric)

    def rows(self) -> Iterator[tuple[Metric, dict[str, str], float | Distribution]]:
        """Metric, labels by name, and the figure."""
        for figures in (self.values, self.distributions):
            for (metric, labels), figure in figures.items():
                yield metric, dict(zip(metric.labels, labels, strict=True)), figure


class Numbers:
    """The figures of one process, kept in memory: the recorder that a cache has unless it is given another."""

    def __init__(self) -> None:
        # One lock for all: it is held for a dictionary's look-up and an addition.
        self._lock = threading.Lock()
        self._values: dict[tuple[Metric, tuple[str, ...]], float] = {}
        self._distributions: dict[tuple[Metric, tuple[str, ...]], Distribution] = {}
        self._sources: list[Callable[[], Iterable[Sample]]] = []

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Adds to a counter."""
        with self._lock:
            self._values[metric, labels] = self._values.get((metric, labels), 0) + by

    def measure(self, metric: Metric, *labels: str, value: float) -> None:
        """One value into a histogram."""
        with self._lock:
            found = self._distributions.get((metric, labels))
            if found is None:
                found = self._distributions[metric, labels] = Distribution()
            found.add(value)

    def ask(self, source: Callable[[], Iterable[Sample]]) -> None:
        """Calls `source` at each `snapshot`."""
        with self._lock:
            self._sources.append(source)

    def snapshot(self) -> Snapshot:
        """All figures at this moment."""
        with self._lock:
            values = dict(self._values)
            distributions = {
                name: Distribution(list(found.counts), found.sum) for name, found in self._distributions.items()
            }
            sources = tuple(self._sources)
        # Outside of the lock: a source may have one of its own, under which its owner counts.
        for source in sources:
            for metric, labels, value in source():
                values[metric, labels] = values.get((metric, labels), 0) + value
        return Snapshot(values, distributions)

    def after_fork(self) -> None:
        """In a child: the lock may be held by a thread that is not there."""
        self._lock = threading.Lock()

    def as_data(self) -> list[dict[str, object]]:
        """All figures in plain JSON types."""
        return [
            {
                "name": metric.name,
                "labels": labels,
                "value": {"counts": figure.counts, "sum": figure.sum, "count": figure.total}
                if isinstance(figure, Distribution)
                else figure,
            }
            for metric, labels, figure in self.snapshot().rows()
        ]
