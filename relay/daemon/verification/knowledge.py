"""What the checker knows of one entity, and what it makes of a look. Pure: time comes in as numbers."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from relay.core.record import Record

TRACE_MAX: Final = 50
LOOKS_KEPT: Final = 20_000
KNOWN_MAX: Final = 160
SPACING_SECONDS: Final = 0.5
"""Together more than a minute."""

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
    """Without its value."""


class Known(NamedTuple):
    """A version that is committed, since when that is known, and from where."""

    at: float
    version: int
    source: str


@dataclass(slots=True)
class Entity:
    """Versions that are known to be committed, times and versions rising."""

    known: deque[Known] = field(default_factory=lambda: deque(maxlen=KNOWN_MAX))
    announced: int = 0
    """The newest version of which an event has arrived."""
    stale_since: float | None = None
    """A confirmed violation that is not healed yet: since when it was stale."""

    def learn(self, at: float, version: int, source: str) -> bool:
        """Notes a committed version; says whether it is a sample: a repeated event, or an older one, is none."""
        is_sample = source == ENTRY or version > self.announced
        if source == EVENT:
            self.announced = max(self.announced, version)
        known = self.known
        if not known or known[-1].version < version:
            # Thinned out, so that the minute before is there of keys that change a hundred times in a second too. What
            # is left out makes staleness look shorter, by less than the spacing, and never longer.
            if len(known) > 1 and known[-1].at < known[-2].at + SPACING_SECONDS:
                known.pop()
            known.append(Known(at, version, source))
        return is_sample

    def overdue(self, look: Look) -> tuple[float, int]:
        """For how many seconds a newer version was known at the time of the look, and the oldest such version."""
        if look.served is not None:
            for at, version, _ in self.known:
                if version > look.served and at <= look.at:
                    return look.at - at, version
        return 0.0, 0


class Looks:
    """The last looks of all entities together, for the traces of violations."""

    def __init__(self) -> None:
        self._ring: deque[tuple[Name, Look]] = deque(maxlen=LOOKS_KEPT)

    def note(self, name: Name, look: Look) -> None:
        """Keeps it for a while."""
        self._ring.append((name, look))

    def trace(self, name: Name, entity: Entity) -> list[dict[str, Any]]:
        """What was learned and seen of an entity, by time: versions and headers, never a value."""
        lines: list[dict[str, Any]] = [
            {"at": known.at, "seen": known.source, "version": known.version} for known in entity.known
        ]
        lines += [_line(look) for noted, look in self._ring if noted == name]
        return sorted(lines, key=lambda line: line["at"])[-TRACE_MAX:]


def _line(look: Look) -> dict[str, Any]:
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
    return line


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
