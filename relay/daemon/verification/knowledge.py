"""What the checker knows of one entity, and what it makes of a look. Pure: time comes in as numbers."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from relay.core.record import Record

TRACE_MAX: Final = 50
KNOWN_MAX: Final = 64

EVENT, ENTRY, READ = KINDS = ("event", "entry", "read")


class Name(NamedTuple):
    """An entity."""

    entity: str
    id: str


class Look(NamedTuple):
    """What a reader would have been given at a moment."""

    at: float
    """Before the tier was asked: what was there may be younger, and no older."""
    served: int | None
    """The version; None: nothing, so that the reader would have gone to the source."""
    record: Record | None


@dataclass(slots=True)
class Entity:
    """Versions with the moment since when they are known to be committed, both rising, and what was seen of it."""

    known: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=KNOWN_MAX))
    trace: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=TRACE_MAX))
    announced: int = 0
    """The newest version of which an event has arrived."""
    stale_since: float | None = None
    """A confirmed violation that is not healed yet: since when it was stale."""

    def learn(self, at: float, version: int, source: str) -> bool:
        """Notes a committed version; says whether it is a sample: a repeated event, or an older one, is none."""
        is_sample = source == ENTRY or version > self.announced
        if source == EVENT:
            self.announced = max(self.announced, version)
        if not self.known or self.known[-1][1] < version:
            self.known.append((at, version))
            self.trace.append({"at": at, "seen": source, "version": version})
        return is_sample

    def note(self, look: Look) -> None:
        """Puts a look into the trace: the fields of the record without its value."""
        line: dict[str, Any] = {"at": look.at, "seen": "record", "served": look.served}
        if look.record is not None:
            record = look.record
            line |= {
                "flags": record.flags,
                "floor": record.floor,
                "version": record.version,
                "epoch": record.epoch.hex(),
                "is_leased": any(record.lease),
                "written_at_ms": record.written_at_ms,
            }
        self.trace.append(line)

    def overdue(self, look: Look) -> tuple[float, int]:
        """For how many seconds a newer version was known at the time of the look, and the oldest such version."""
        if look.served is not None:
            for at, version in self.known:
                if version > look.served and at <= look.at:
                    return look.at - at, version
        return 0.0, 0


@dataclass(slots=True)
class Tally:
    """Samples and confirmed violations by kind and scale, and how long violations lasted."""

    scales: Sequence[float]
    samples: Counter[tuple[str, float]] = field(default_factory=Counter)
    violations: Counter[tuple[str, float]] = field(default_factory=Counter)
    healed_seconds: list[float] = field(default_factory=list)
    missed: int = 0
    """Looks that came so late that they say nothing about their scale."""
    ahead: int = 0
    """Entries whose version the database does not have."""
    unconfirmed: int = 0
    """Suspects that the primary did not confirm: it has an older version now, as after a restore."""

    def judged(self, kind: str, scales: Sequence[float], overdue: float) -> None:
        """Counts a look, of which it is certain by now how late it was, at these scales."""
        for scale in scales:
            self.samples[kind, scale] += 1
            if overdue >= scale:
                self.violations[kind, scale] += 1

    def total(self, scale: float) -> tuple[int, int]:
        """Violations and samples of all kinds."""
        return (
            sum(self.violations[kind, scale] for kind in KINDS),
            sum(self.samples[kind, scale] for kind in KINDS),
        )
