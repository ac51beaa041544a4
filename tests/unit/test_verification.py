"""The checker: counts what a reader is given too late, nothing else, and only what the primary confirms."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from relay.cache.numbers import METRICS, READS, SERVED_AGE, TIER_OPEN, Numbers, Sample
from relay.cache.prometheus import PREFIX, CacheCollector
from relay.cache.tiers import Page, TierError
from relay.core.names import record_name
from relay.core.record import HAS_VALUE, NEGATIVE, NO_LEASE, UNKNOWN, Record, encode_record
from relay.daemon.verification import report
from relay.daemon.verification.knowledge import ENTRY, EVENT, READ, Name
from relay.daemon.verification.survey import kind_of
from relay.daemon.verification.verifier import Sources, Verifier

EPOCH, USER = b"epoch..1", Name("user", "42")
SCALES = (1.0, 10.0, 60.0)


def record(version: int, *, floor: int = 0, flags: int = HAS_VALUE, epoch: bytes = EPOCH, lease=NO_LEASE) -> Record:
    return Record(flags, 1, 1, epoch, floor, version, lease, 0, 0, 0, 0, b"value")


class World:
    """A tier, a database and a topic that do what a test says; the clock is turned by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.epoch: bytes | None = EPOCH
        self.records: dict[Name, Record] = {}
        self.database: dict[Name, int] = {}
        self.arriving: list[tuple[Name, int]] = []
        self.walked: list[Name] = []
        self.is_down = False
        self.asked = 0
        self.violations: list[tuple[Name, dict, list]] = []

    def look(self, keys: Sequence[str]) -> Page:
        if self.is_down:
            raise TierError("timeout")
        by_key = {record_name(*name): encode_record(found) for name, found in self.records.items()}
        return Page(self.epoch, [by_key.get(key) for key in keys])

    def versions(self, names: Sequence[Name]) -> list[int]:
        self.asked += len(names)
        return [self.database.get(name, 0) for name in names]

    def events(self) -> list[tuple[Name, int]]:
        arrived, self.arriving = self.arriving, []
        return arrived

    def commit(self, version: int, name: Name = USER) -> None:
        self.database[name] = version
        self.arriving.append((name, version))


@pytest.fixture
def world() -> World:
    return World()


def verifier_of(world: World, **settings: int) -> Verifier:
    return Verifier(
        Sources(world, world.versions, world.events, lambda: world.walked),
        SCALES,
        clock=lambda: world.now,
        draw=random.Random(1).random,
        **{"reads_per_turn": 0, **settings},
        on_violation=lambda *found: world.violations.append(found),
    )


@pytest.fixture
def verifier(world) -> Verifier:
    return verifier_of(world)


def pass_time(world: World, verifier: Verifier, until: float) -> None:
    while world.now < until:
        world.now += 0.25
        verifier.turn(walks=False)


def counted(verifier: Verifier, kind: str) -> list[tuple[int, int]]:
    """Violations and samples at each scale."""
    return [(verifier.tally.violations[kind, scale], verifier.tally.samples[kind, scale]) for scale in SCALES]


def test_a_copy_that_follows_in_time_is_a_clean_sample_at_each_scale(world, verifier):
    """Whether it was refilled, or is not there at all."""
    world.commit(7)
    verifier.turn(walks=False)
    world.records[USER] = record(7, floor=7)
    pass_time(world, verifier, 5)
    del world.records[USER]
    pass_time(world, verifier, 61)
    assert counted(verifier, EVENT) == [(0, 1)] * 3
    assert world.violations == []
    assert world.asked == 0


def test_a_stale_copy_counts_at_the_scales_that_it_outlives(world, verifier):
    """Stale for twelve seconds: too late at 1 and 10, and right at 60. It is followed until it is healed."""
    world.records[USER] = record(6)
    world.commit(7)
    verifier.turn(walks=False)
    pass_time(world, verifier, 11)
    assert verifier.unhealed == 1
    world.records[USER] = record(7)
    pass_time(world, verifier, 61)
    assert counted(verifier, EVENT) == [(1, 1), (1, 1), (0, 1)]
    assert verifier.unhealed == 0
    (lasted,) = verifier.tally.healed_seconds
    assert 11 <= lasted <= 12


def test_one_stretch_of_staleness_is_told_once_with_its_trace_and_without_values(world, verifier):
    """What was seen of the entity, in order."""
    world.records[USER] = record(6, floor=5)
    world.commit(7)
    verifier.turn(walks=False)
    pass_time(world, verifier, 61)
    ((name, found, trace),) = world.violations
    assert name == USER
    assert (found["kind"], found["served"], found["committed"]) == (EVENT, 6, 7)
    assert [(line["seen"], line["version"]) for line in trace] == [(EVENT, 7), ("record", 6)]
    assert trace[1]["floor"] == 5
    assert "value" not in str(trace)
    assert counted(verifier, EVENT) == [(1, 1)] * 3
    assert verifier.unhealed == 1


@pytest.mark.parametrize(
    "there",
    [
        record(6, floor=7),
        record(6, flags=0),
        record(6, flags=HAS_VALUE | UNKNOWN),
        record(6, epoch=b"epoch..0"),
    ],
    ids=["below its floor", "no value", "unknown", "of an earlier epoch"],
)
def test_what_no_reader_is_given_is_no_violation(world, verifier, there):
    """However old it is."""
    world.records[USER] = there
    world.commit(7)
    verifier.turn(walks=False)
    pass_time(world, verifier, 61)
    assert counted(verifier, EVENT) == [(0, 1)] * 3


def test_nothing_in_a_closed_tier_is_a_violation(world, verifier):
    """It serves nobody."""
    world.records[USER], world.epoch = record(6), None
    world.commit(7)
    verifier.turn(walks=False)
    pass_time(world, verifier, 61)
    assert counted(verifier, EVENT) == [(0, 1)] * 3


def test_a_suspect_counts_only_if_the_primary_confirms_it(world, verifier):
    """A database that was restored has forgotten the version of an event that is still in the topic."""
    world.records[USER] = record(6)
    world.commit(7)
    world.database[USER] = 6
    verifier.turn(walks=False)
    pass_time(world, verifier, 61)
    assert counted(verifier, EVENT) == [(0, 0)] * 3
    assert verifier.tally.unconfirmed == 3
    assert world.violations == []


def test_a_record_without_any_event_is_found_by_walking(world, verifier):
    """A lost event, or a change that nobody announced to Kafka: only the database knows."""
    world.records[USER], world.database[USER], world.walked = record(6), 7, [USER]
    verifier.turn(walks=True)
    pass_time(world, verifier, 61)
    assert counted(verifier, ENTRY) == [(1, 1)] * 3
    assert counted(verifier, EVENT) == [(0, 0)] * 3


def test_a_record_that_is_ahead_of_the_database_is_told(world, verifier):
    """As after a restore: its versions will be given to other rows."""
    world.records[USER], world.database[USER], world.walked = record(8), 7, [USER]
    verifier.turn(walks=True)
    assert verifier.tally.ahead == 1
    assert world.violations[0][1]["kind"] == "ahead"


def test_reads_at_random_moments_are_judged_by_all_that_was_known(world):
    """One sample per read and scale; of what goes to the source, none."""
    verifier = verifier_of(world, reads_per_turn=3)
    world.records[USER] = record(6)
    world.commit(7)
    verifier.turn(walks=False)
    world.now = 0.5
    verifier.turn(walks=False)
    assert counted(verifier, READ) == [(0, 2)] * 3
    world.now = 15.0
    verifier.turn(walks=False)
    assert counted(verifier, READ) == [(1, 3), (1, 3), (0, 3)]
    del world.records[USER]
    world.now = 16.0
    verifier.turn(walks=False)
    assert counted(verifier, READ)[0] == (1, 3)


def test_a_key_that_changes_all_the_time_is_remembered_for_a_minute(world):
    """A hundred versions in a second: what was current a minute ago is overdue by about a minute, and never by more."""
    verifier = verifier_of(world, reads_per_turn=1)
    world.records[USER] = record(50)
    for step in range(6500):
        world.now = step / 100
        world.database[USER] = step + 1
        world.arriving.append((USER, step + 1))
        verifier._learn(*world.events()[0], EVENT)
    overdue, _ = verifier._entities[USER].overdue(verifier._look([USER])[USER])
    assert 64.49 - 0.5 <= overdue <= 64.49


def test_a_repeated_event_is_no_second_sample(world, verifier):
    """Relays may publish twice: samples would look like more than they are."""
    for _ in range(3):
        world.commit(7)
    verifier.turn(walks=False)
    pass_time(world, verifier, 61)
    assert counted(verifier, EVENT) == [(0, 1)] * 3


def test_a_tier_that_does_not_answer_postpones_looks_and_says_so(world, verifier):
    """Until a look says nothing any more about its scale; then it is counted as missed and not as clean."""
    world.commit(7)
    verifier.turn(walks=False)
    world.is_down = True
    pass_time(world, verifier, 4)
    assert counted(verifier, EVENT)[0] == (0, 0)
    assert verifier.tier_failures > 0
    world.is_down = False
    pass_time(world, verifier, 61)
    assert counted(verifier, EVENT) == [(0, 0), (0, 1), (0, 1)]
    assert verifier.tally.missed == 1


def test_more_than_it_can_follow_makes_the_share_of_keys_smaller(world):
    """Whole histories stay or go."""
    verifier = verifier_of(world, pending_max=3000)
    for number in range(1001):
        world.commit(1, Name("user", str(number)))
    verifier.turn(walks=False)
    assert verifier.share == 0.5
    pass_time(world, verifier, 61)
    samples = [samples for _, samples in counted(verifier, EVENT)]
    assert samples == [samples[0]] * 3
    assert 0.4 < samples[0] / 1001 < 0.6


def test_the_report_says_how_much_it_is_worth(world, verifier):
    """No samples are no nines; violations are in it, healed or not; and it fits a terminal."""
    world.records[USER] = record(6)
    world.commit(7)
    verifier.turn(walks=False)
    pass_time(world, verifier, 15)
    world.records[USER] = record(7)
    pass_time(world, verifier, 20)
    data = report.as_data(verifier, 20.0)
    assert [(one["samples"], one["violations"], one["nines"]) for one in data["scales"]] == [
        (1, 1, 0.0), (1, 1, 0.0), (0, 0, 0.0)
    ]  # fmt: skip
    text = report.as_text(data)
    assert max(map(len, text.splitlines())) <= 80
    assert "   60 s      -           0           0" in text
    assert "healed   1" in text


def test_records_are_told_apart():
    """For what they cost in memory."""
    lease = b"l" * 8
    kinds = [
        kind_of(found, EPOCH)
        for found in (
            record(7),
            record(7, flags=HAS_VALUE | NEGATIVE),
            record(7, floor=8),
            record(0, flags=0, lease=lease),
            record(0, flags=0, floor=8, lease=lease),
            record(7, epoch=b"epoch..0"),
            None,
        )
    ]
    assert kinds == ["entry", "absence", "tombstone", "lease", "tombstone", "void", "void"]


# What is counted


def test_prometheus_is_shown_what_was_counted():
    """In its own terms, with what a fast path counted by itself."""
    from prometheus_client import CollectorRegistry, generate_latest

    numbers = Numbers()
    numbers.count(READS, "user", "local", "hit", by=2)
    numbers.ask(lambda: [Sample(READS, ("user", "local", "hit"), 3)])
    numbers.measure(SERVED_AGE, "user", "shared", value=0.3)
    numbers.ask(lambda: [Sample(TIER_OPEN, ("shared",), 1)])
    registry = CollectorRegistry()
    registry.register(CacheCollector(numbers))
    text = generate_latest(registry).decode()
    assert 'relay_cache_reads_total{cache="user",result="hit",tier="local"} 5.0' in text
    assert 'relay_cache_tier_open{tier="shared"} 1.0' in text
    assert 'relay_cache_served_age_seconds_bucket{cache="user",le="0.1",tier="shared"} 0.0' in text
    assert 'relay_cache_served_age_seconds_bucket{cache="user",le="0.5",tier="shared"} 1.0' in text
    assert 'relay_cache_served_age_seconds_sum{cache="user",tier="shared"} 0.3' in text


def test_every_metric_has_a_name_of_its_own_and_its_unit():
    """Counters end in _total; and what is measured is in seconds."""
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.kind != "histogram" or metric.name.endswith("_seconds")
        assert metric.meaning.endswith(".")
    assert PREFIX.endswith("_")
