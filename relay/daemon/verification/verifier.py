"""The checker at work: learns versions, looks when it is time, confirms, follows. One thread; I/O is handed in."""

from __future__ import annotations

import hashlib
import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from relay.cache.tiers import Page, TierError
from relay.core.names import record_name
from relay.core.record import decode_record
from relay.daemon.verification.knowledge import ENTRY, EVENT, READ, Entity, Look, Looks, Name, Tally

ENTITIES_MAX: Final = 50_000
PENDING_MAX: Final = 300_000
LOOKS_MAX: Final = 500
HEAL_SECONDS: Final = 0.25
_SPACE: Final = 1 << 64


class Tier(Protocol):
    """The shared tier, as far as it is needed."""

    def look(self, keys: Sequence[str]) -> Page:
        """As `SharedTier.look`."""
        ...


class Sources(NamedTuple):
    """Where the checker learns from."""

    tier: Tier
    versions: Callable[[Sequence[Name]], list[int]]
    """Of the primary; 0 for what it does not know."""
    events: Callable[[], Iterable[tuple[Name, int]]]
    """Those that have arrived since; does not wait."""
    walk: Callable[[], list[Name]]
    """Some entities of which there are records; other ones each time."""


class _Probe(NamedTuple):
    due: float
    number: int
    kind: str
    scale: float
    name: Name
    version: int


class Verifier:
    """Samples by key: the whole history of an entity, or nothing of it.

    `share`, the part of all keys that is sampled, falls when there is more to do than it can.

    Args:
        scales: in seconds, rising.
        clock: monotonic, in seconds.
        draw: of the uniform distribution over [0, 1).
        pending_max: looks that are not due yet; above it, `share` is halved.
        on_violation: called with the entity, what was found and its trace, once for each stretch of staleness.
    """

    def __init__(
        self,
        sources: Sources,
        scales: Sequence[float],
        *,
        clock: Callable[[], float],
        draw: Callable[[], float],
        reads_per_turn: int = 50,
        pending_max: int = PENDING_MAX,
        on_violation: Callable[[Name, dict[str, Any], list[dict[str, Any]]], None] = lambda *_: None,
    ) -> None:
        self._sources = sources
        self._clock = clock
        self._draw = draw
        self._reads_per_turn = reads_per_turn
        self._pending_max = pending_max
        self._on_violation = on_violation
        self._entities: OrderedDict[Name, Entity] = OrderedDict()
        self._agenda: list[_Probe] = []
        self._healing: list[tuple[float, Name]] = []
        self._number = 0
        self._looks = Looks()
        self.tally = Tally(scales)
        self.share = 1.0
        self.tier_failures = 0

    @property
    def unhealed(self) -> int:
        """Entities of which something stale was served when they were looked at last."""
        return sum(entity.stale_since is not None for entity in self._entities.values())

    def turn(self, *, walks: bool) -> None:
        """Once round: events, a few entries if `walks`, then every look that is due.

        Raises:
            psycopg.Error: the database does not answer.
        """
        for name, version in self._sources.events():
            self._learn(name, version, EVENT)
        try:
            if walks:
                self._walk()
            self._look_at_due()
            self._look_at_some()
            self._look_at_stale()
        except TierError:
            # Nobody is served anything by a tier that does not answer. What is due stays due.
            self.tier_failures += 1

    def _walk(self) -> None:
        names = [name for name in self._sources.walk() if self._is_sampled(name)]
        # First the records, then the database: whatever a record says must have been committed by then.
        records = self._sources.tier.look([record_name(*name) for name in names])
        for name, data, version in zip(names, records.records, self._sources.versions(names), strict=True):
            record = decode_record(data)
            if record is not None and record.epoch == records.epoch and record.is_current and record.version > version:
                self.tally.ahead += 1
                found = {"kind": "ahead", "served": record.version, "committed": version, "overdue_seconds": 0.0}
                self._on_violation(name, found, [])
            self._learn(name, version, ENTRY)

    def _learn(self, name: Name, version: int, kind: str) -> None:
        if not self._is_sampled(name):
            return
        now = self._clock()
        entity = self._entities.get(name)
        if entity is None:
            entity = self._entities[name] = Entity()
            if len(self._entities) > ENTITIES_MAX:
                self._entities.popitem(last=False)
        self._entities.move_to_end(name)
        if entity.learn(now, version, kind):
            for scale in self.tally.scales:
                self._number += 1
                heapq.heappush(self._agenda, _Probe(now + scale, self._number, kind, scale, name, version))
        if len(self._agenda) > self._pending_max:
            self.share /= 2
            self._agenda = [probe for probe in self._agenda if self._is_sampled(probe.name)]
            heapq.heapify(self._agenda)

    def _is_sampled(self, name: Name) -> bool:
        if self.share >= 1:
            return True
        digest = hashlib.blake2b(f"{name.entity}:{name.id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.share * _SPACE

    def _look_at_due(self) -> None:
        """In the order in which they are due, so that what is late is late for all scales alike."""
        while self._agenda and self._agenda[0].due <= self._clock():
            probes = self._take_due()
            try:
                looks = self._look(dict.fromkeys(probe.name for probe in probes))
            except TierError:
                for probe in probes:
                    heapq.heappush(self._agenda, probe)
                raise
            suspects = []
            for probe in probes:
                look = looks.get(probe.name)
                if look is None or look.at > probe.due + max(1.0, probe.scale):
                    self.tally.missed += 1
                elif look.served is not None and look.served < probe.version:
                    suspects.append((probe, look))
                else:
                    self.tally.judged(probe.kind, [probe.scale], 0.0)
            for (probe, look), is_confirmed in zip(
                suspects, self._confirmed([(probe.name, probe.version) for probe, _ in suspects]), strict=True
            ):
                if is_confirmed:
                    overdue = look.at - probe.due + probe.scale
                    self.tally.judged(probe.kind, [probe.scale], overdue)
                    self._stale(probe.name, probe.kind, probe.version, look, overdue)

    def _take_due(self) -> list[_Probe]:
        now = self._clock()
        taken: list[_Probe] = []
        while self._agenda and self._agenda[0].due <= now and len(taken) < LOOKS_MAX:
            taken.append(heapq.heappop(self._agenda))
        return taken

    def _look_at_some(self) -> None:
        """Reads at random moments of entities of which something is known."""
        if not self._entities or not self._reads_per_turn:
            return
        names = list(self._entities)
        chosen = dict.fromkeys(names[int(self._draw() * len(names))] for _ in range(self._reads_per_turn))
        for name, look in self._look(chosen).items():
            if look.served is None:
                continue  # Whoever reads this goes to the source: it is no read of a copy.
            overdue, version = self._entities[name].overdue(look)
            if overdue < self.tally.scales[0]:
                self.tally.judged(READ, self.tally.scales, 0.0)
            elif self._confirmed([(name, version)])[0]:
                self.tally.judged(READ, self.tally.scales, overdue)
                self._stale(name, READ, version, look, overdue)

    def _look_at_stale(self) -> None:
        """Again and again, until what was stale is not."""
        now = self._clock()
        due = {name: None for at, name in self._healing if at <= now}
        self._healing = [(at, name) for at, name in self._healing if at > now]
        for name, look in self._look(due).items():
            entity = self._entities[name]
            overdue, _ = entity.overdue(look)
            if overdue > 0:
                self._healing.append((now + HEAL_SECONDS, name))
            elif entity.stale_since is not None:
                self.tally.healed_seconds.append(look.at - entity.stale_since)
                entity.stale_since = None

    def _look(self, names: Iterable[Name]) -> dict[Name, Look]:
        wanted = [name for name in names if name in self._entities]
        if not wanted:
            return {}
        at = self._clock()
        page = self._sources.tier.look([record_name(*name) for name in wanted])
        looks = {}
        for name, data in zip(wanted, page.records, strict=True):
            record = decode_record(data)
            is_served = record is not None and record.epoch == page.epoch and record.is_current
            bare = None if record is None else record._replace(payload=b"")
            looks[name] = Look(at, record.version if is_served and record is not None else None, bare)
            self._looks.note(name, looks[name])
        return looks

    def _confirmed(self, suspects: Sequence[tuple[Name, int]]) -> list[bool]:
        """Whether the primary has that version, or a newer one."""
        if not suspects:
            return []
        there = self._sources.versions([name for name, _ in suspects])
        confirmed = [found >= version for found, (_, version) in zip(there, suspects, strict=True)]
        self.tally.unconfirmed += confirmed.count(False)
        return confirmed

    def _stale(self, name: Name, kind: str, version: int, look: Look, overdue: float) -> None:
        entity = self._entities[name]
        if entity.stale_since is None:
            entity.stale_since = look.at - overdue
            self._healing.append((look.at + HEAL_SECONDS, name))
            found = {"kind": kind, "served": look.served, "committed": version, "overdue_seconds": round(overdue, 3)}
            self._on_violation(name, found, self._looks.trace(name, entity))
