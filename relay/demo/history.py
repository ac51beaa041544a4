"""Decides from outside whether the promise was kept: a journal of the writers against the whole topic.

It imports nothing of what it checks. A checker that shared the relay's idea of order or of an event would
share its mistakes too. What it knows: per key, the writers numbered their events in commit order; and per
key, a right log is made of steps forward, and of steps back that are then walked again without a gap:

    1 2 3 4 5 | 3 4 5 6 7 | 7 8      right: two crashes, each repeats a suffix
    1 2 3 4 5 | 3 5 6                suffix_broken: the repeat skips 4
    1 2 3 4 5 | 3 4                  ends_old: a reader that keeps the last value is left with 4
    1 2 4 3                          reordered (and ends_old)
    1 2 4                            lost, if 3 was committed and is not parked

One pass over the records, one entry per event and per key: several million records are fine.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right, insort
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Final, Literal

Outcome = Literal["committed", "rolled_back", "unknown"]
Headers = Iterable[tuple[str, bytes | None]]

EVENT_ID: Final = "event_id"
#: What the relay adds on its way; everything else belongs to the writer and must arrive unchanged.
RELAY_HEADERS: Final = frozenset({EVENT_ID, "traceparent"})
EXAMPLES_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class Written:
    """One event as its writer saw it.

    Args:
        sequence: the place of the event among those of its topic and key, in commit order. The writer knows
        it
            because it writes while it holds the key's lock.
        digest: `digest` of the value and the writer's own headers.
        outcome: "unknown" if the connection broke while the commit was under way.
    """

    event_id: str
    topic: str
    key: bytes
    sequence: int
    digest: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Record:
    """One record as a reader of the topic saw it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]

    @property
    def event_id(self) -> str | None:
        """Which event this is a copy of; None if the record does not say."""
        for name, value in self.headers:
            if name == EVENT_ID and value is not None:
                return value.decode("utf-8", errors="replace")
        return None

    @property
    def place(self) -> str:
        """Where to look for it."""
        return f"{self.topic}[{self.partition}]@{self.offset}"


def digest(value: bytes | None, headers: Headers, ignored: Container[str] = RELAY_HEADERS) -> str:
    """A fingerprint of value and headers, whatever the order of the headers.

    Every part carries its length, so no two contents are written alike; no value is not an empty value.
    """
    found = hashlib.sha256(_framed(value))
    for header in sorted(_framed(name.encode()) + _framed(content) for name, content in headers if name not in ignored):
        found.update(header)
    return found.hexdigest()


def _framed(part: bytes | None) -> bytes:
    return b"-" if part is None else b"%d:%b" % (len(part), part)


@dataclass(slots=True)
class Anomaly:
    """How often something went wrong, and the first cases of it."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def note(self, template: str, *facts: object) -> None:
        """Counts one; writes it out only while there is room, as a broken run may have millions."""
        self.count += 1
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(template % facts)


@dataclass(frozen=True, slots=True)
class Anomalies:
    """Everything that must not happen, one field per name."""

    lost: Anomaly = field(default_factory=Anomaly)
    phantom: Anomaly = field(default_factory=Anomaly)
    reordered: Anomaly = field(default_factory=Anomaly)
    ends_old: Anomaly = field(default_factory=Anomaly)
    suffix_broken: Anomaly = field(default_factory=Anomaly)
    altered: Anomaly = field(default_factory=Anomaly)
    moved: Anomaly = field(default_factory=Anomaly)
    parked_published: Anomaly = field(default_factory=Anomaly)
    beyond_bound: Anomaly = field(default_factory=Anomaly)


MEANINGS: Final[Mapping[str, str]] = {
    "lost": "committed, not parked, and not in the topic",
    "phantom": "in the topic, but rolled back or never written",
    "reordered": "first delivered after a later event of its key, or a place taken twice",
    "ends_old": "keys whose last record is not their newest published event",
    "suffix_broken": "repeats that skip an event published before",
    "altered": "copies whose topic, key, value or user headers are not what was written",
    "moved": "keys found in more than one partition",
    "parked_published": "parked, and in the topic all the same",
    "beyond_bound": "repeats, or steps back, beyond what this run allows",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the check found. Repeats and steps back are no anomalies: a crash may cause them.

    Args:
        events: distinct written events found in the topic.
        repeated: copies beyond the first.
        step_backs: how often the log of a key went back; `longest_step_back` in events of that key.
    """

    committed: int
    unknown: int
    keys: int
    records: int
    events: int
    repeated: int
    step_backs: int
    longest_step_back: int
    anomalies: Anomalies

    @property
    def found(self) -> dict[str, Anomaly]:
        """The anomalies that occurred, by name."""
        pairs = ((each.name, getattr(self.anomalies, each.name)) for each in fields(self.anomalies))
        return {name: anomaly for name, anomaly in pairs if anomaly.count}

    @property
    def ok(self) -> bool:
        """True if the promise was kept."""
        return not self.found

    def summary(self) -> str:
        """One line."""
        counts = ", ".join(f"{name} {anomaly.count}" for name, anomaly in self.found.items())
        facts = f"{self.committed} committed, {self.records} records, {self.repeated} repeated"
        return f"{'ok' if self.ok else 'BROKEN'}: {facts}; {counts or 'no anomaly'}"

    def explain(self) -> str:
        """The whole finding, with examples."""
        lines = [
            self.summary(),
            f"  {self.keys} keys, {self.events} distinct events, {self.unknown} of unknown outcome",
            f"  {self.step_backs} steps back, the longest over {self.longest_step_back} events",
        ]
        for name, anomaly in self.found.items():
            lines.append(f"  {name}: {anomaly.count} ({MEANINGS[name]})")
            lines += [f"    {example}" for example in anomaly.examples]
            if anomaly.count > len(anomaly.examples):
                lines.append(f"    and {anomaly.count - len(anomaly.examples)} more")
        return "\n".join(lines)


def check(
    written: Iterable[Written],
    records: Iterable[Record],
    *,
    parked: Container[str] = (),
    clean: bool = False,
    repeats_max: int | None = None,
    step_back_max: int | None = None,
    relay_headers: Container[str] = RELAY_HEADERS,
) -> Verdict:
    """Compares what was written with what is in the topic.

    Args:
        records: the whole topic (or several), in offset order within each partition.
        parked: ids of events that were taken out of their key's way; a set, if there are many.
        clean: no process was killed, so nothing may be repeated.
        repeats_max: how many repeats the kills of this run may have caused.
        step_back_max: how many events of one key may have been in flight.

    Raises:
        ValueError: the journal or the reading is broken, so that no verdict is possible.
    """
    journal = _by_id(written)
    examination = _Examination(journal, parked, relay_headers)
    for record in records:
        examination.look(record)
    return examination.verdict(0 if clean else repeats_max, 0 if clean else step_back_max)


def _by_id(written: Iterable[Written]) -> dict[str, Written]:
    journal: dict[str, Written] = {}
    for event in written:
        if event.event_id in journal:
            raise ValueError(f"the journal names event {event.event_id} twice")
        journal[event.event_id] = event
    return journal


@dataclass(slots=True)
class _KeyLog:
    """The log of one key so far: what was published, sorted, and where the last record stands in it."""

    published: list[int] = field(default_factory=list)
    at: int = -1

    @property
    def newest(self) -> int:
        return self.published[-1] if self.published else -1

    def next_repeat(self) -> int | None:
        """What must come next while an old stretch is walked again; None on new ground."""
        if self.at == self.newest:
            return None
        return self.published[bisect_right(self.published, self.at)]


class _Examination:
    """One pass over the topic. Each question about a record is a method; none knows of the others'
    answers."""

    def __init__(self, journal: Mapping[str, Written], parked: Container[str], relay_headers: Container[str]) -> None:
        self._journal = journal
        self._parked = parked
        self._relay_headers = relay_headers
        self._anomalies = Anomalies()
        self._seen: set[str] = set()
        self._logs: dict[tuple[str, bytes], _KeyLog] = {}
        self._homes: dict[tuple[str, bytes], int] = {}
        self._moved: set[tuple[str, bytes]] = set()
        self._offsets: dict[tuple[str, int], int] = {}
        self._records = 0
        self._repeats = Anomaly()
        self._step_backs: dict[int, int] = {}

    def look(self, record: Record) -> None:
        """Asks every question about the next record."""
        self._records += 1
        self._check_reading(record)
        self._check_home(record)
        event = self._known(record)
        if event is None:
            return
        self._check_content(event, record)
        is_first = event.event_id not in self._seen
        self._seen.add(event.event_id)
        if not is_first:
            self._repeats.note("event %s again at %s", event.event_id, record.place)
        if event.event_id in self._parked:
            self._anomalies.parked_published.note("event %s at %s", event.event_id, record.place)
        elif is_first:
            self._advance(event, record)
        else:
            self._repeat(event, record)

    def verdict(self, repeats_max: int | None, step_back_max: int | None) -> Verdict:
        """Asks what can be asked only at the end."""
        outcomes = [event.outcome for event in self._journal.values()]
        self._check_lost()
        self._check_ends()
        self._check_bounds(repeats_max, step_back_max)
        return Verdict(
            committed=outcomes.count("committed"),
            unknown=outcomes.count("unknown"),
            keys=len(self._homes),
            records=self._records,
            events=len(self._seen),
            repeated=self._repeats.count,
            step_backs=sum(self._step_backs.values()),
            longest_step_back=max(self._step_backs, default=0),
            anomalies=self._anomalies,
        )

    def _check_reading(self, record: Record) -> None:
        partition = (record.topic, record.partition)
        if record.offset <= self._offsets.get(partition, -1):
            raise ValueError(f"the records are not in offset order: {record.place} came after a later one")
        self._offsets[partition] = record.offset

    def _check_home(self, record: Record) -> None:
        if record.key is None:
            return
        key = (record.topic, record.key)
        home = self._homes.setdefault(key, record.partition)
        if home != record.partition and key not in self._moved:
            self._moved.add(key)
            self._anomalies.moved.note("key %r was in partition %d, now %s", record.key, home, record.place)

    def _known(self, record: Record) -> Written | None:
        event_id = record.event_id
        event = self._journal.get(event_id) if event_id is not None else None
        if event is None:
            self._anomalies.phantom.note("event %s at %s was never written", event_id, record.place)
            return None
        if event.outcome == "rolled_back":
            self._anomalies.phantom.note("event %s at %s was rolled back", event_id, record.place)
            return None
        return event

    def _check_content(self, event: Written, record: Record) -> None:
        parts = {
            "topic": record.topic == event.topic,
            "key": record.key == event.key,
            "value or headers": digest(record.value, record.headers, self._relay_headers) == event.digest,
        }
        if not all(parts.values()):
            wrong = " and ".join(name for name, same in parts.items() if not same)
            self._anomalies.altered.note("event %s at %s: other %s", event.event_id, record.place, wrong)

    def _log_of(self, event: Written) -> _KeyLog:
        """By the journal's key: an altered record still has its place in the order it was written in."""
        return self._logs.setdefault((event.topic, event.key), _KeyLog())

    def _advance(self, event: Written, record: Record) -> None:
        """A first delivery: new ground, to be reached only after an old stretch was walked to its end."""
        log = self._log_of(event)
        if event.sequence > log.newest:
            self._check_step(log, event, record)
            log.published.append(event.sequence)
        else:
            facts = (event.event_id, record.place, event.key, event.sequence, log.newest)
            self._anomalies.reordered.note("event %s at %s: key %r, %d first seen after %d", *facts)
            insort(log.published, event.sequence)
        log.at = event.sequence

    def _repeat(self, event: Written, record: Record) -> None:
        """A copy: a step back, or the next step of a stretch that is walked again."""
        log = self._log_of(event)
        if event.sequence <= log.at:
            length = len(log.published) - bisect_right(log.published, event.sequence) + 1
            self._step_backs[length] = self._step_backs.get(length, 0) + 1
        else:
            self._check_step(log, event, record)
        log.at = event.sequence

    def _check_step(self, log: _KeyLog, event: Written, record: Record) -> None:
        due = log.next_repeat()
        if due is not None and due != event.sequence:
            facts = (record.place, event.key, log.at, event.sequence, due)
            self._anomalies.suffix_broken.note("at %s: key %r, from %d to %d, skipping %d", *facts)

    def _check_lost(self) -> None:
        for event in self._journal.values():
            if event.outcome != "committed" or event.event_id in self._seen:
                continue
            if event.event_id not in self._parked:
                facts = (event.event_id, event.topic, event.key, event.sequence)
                self._anomalies.lost.note("event %s of %s, key %r, %d", *facts)

    def _check_ends(self) -> None:
        for (topic, key), log in self._logs.items():
            if log.at != log.newest:
                self._anomalies.ends_old.note("%s, key %r ends on %d of %d", topic, key, log.at, log.newest)

    def _check_bounds(self, repeats_max: int | None, step_back_max: int | None) -> None:
        beyond = self._anomalies.beyond_bound
        if repeats_max is not None and self._repeats.count > repeats_max:
            facts = (self._repeats.count, repeats_max, self._repeats.examples[0])
            beyond.note("%d repeats, at most %d allowed; the first: %s", *facts)
        if step_back_max is not None:
            for length, times in sorted(self._step_backs.items()):
                if length > step_back_max:
                    beyond.note("%d steps back over %d events, %d allowed", times, length, step_back_max)
