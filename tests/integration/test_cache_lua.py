"""The Lua on a real Redis does what the Python reference says: the same answers, the same bytes, the same lifetimes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from relay.cache.limits import TierLimits
from relay.cache.reference import Held, ReferenceTier
from relay.cache.tiers import Applied, Bump, Grant, Position, Put, Reject
from relay.core.record import DERIVED, HAS_VALUE, KEEP, NEGATIVE, decode_record
from tests.support.redis import fresh_namespace
from tests.support.tiers import Clock, staged, tokens

LIMITS = TierLimits(
    lease_ms=6_000,
    grace_ms=8_000_000,
    tombstone_ms=14_000_000,
    unknown_ms=40_000_000,
    stamp_ms=80_000_000,
    value_bytes_max=100,
)
HARD_MS = 20_000_000
SHORT_MS = 3_000_000
SLACK_MS = 900_000
"""More than all advances of the clock of one example, and less than the difference of any two lifetimes."""

RECORDS = ["r:user:1", "d:search:q"]
STAMPS = ["s:a", "s:b"]
KEYS = st.sampled_from(RECORDS)
VERSIONS = st.integers(1, 4)
POSITIONS = st.lists(
    st.builds(Position, st.sampled_from(["t", "u"]), st.integers(0, 1), st.integers(0, 4), st.integers(0, 6)),
    max_size=3,
    unique_by=lambda at: (at.topic, at.partition),
)
BUMPS = st.lists(st.builds(Bump, KEYS, st.none() | VERSIONS, st.sampled_from([False, False, True])), max_size=4)
SOME_STAMPS = st.lists(st.sampled_from(STAMPS), unique=True)
CLAIMLESS = POSITIONS.map(lambda positions: [at._replace(expected=0) for at in positions])

BACK = st.integers(0, 3)
"""Which of the latest leases."""
FLAGS = st.sampled_from([0, 0, NEGATIVE, KEEP, KEEP, KEEP | NEGATIVE])
PAYLOADS = st.sampled_from([b"", b"value", bytes(101)])

OPERATIONS = st.one_of(
    st.tuples(st.just("open"), POSITIONS),
    st.tuples(st.just("apply"), BUMPS, SOME_STAMPS, CLAIMLESS),
    st.tuples(st.just("apply"), BUMPS, SOME_STAMPS, POSITIONS),
    st.tuples(st.just("lease"), KEYS, st.integers(0, 4), SOME_STAMPS, st.booleans()),
    st.tuples(st.just("lease"), KEYS, st.just(0), SOME_STAMPS, st.just(True)),
    st.tuples(st.just("put"), BACK, VERSIONS, FLAGS, PAYLOADS),
    st.tuples(st.just("put"), st.just(0), VERSIONS, FLAGS, st.just(b"value")),
    st.tuples(st.just("fill"), KEYS, VERSIONS, FLAGS, SOME_STAMPS),
    st.tuples(st.just("fill"), KEYS, VERSIONS, FLAGS, SOME_STAMPS),
    st.tuples(st.just("release"), BACK),
    st.tuples(st.just("evict"), st.sampled_from(RECORDS + STAMPS)),
    st.tuples(st.just("foreign"), KEYS, st.sampled_from([b"", b"R\x01", b"R\x02" + bytes(80), bytes(64), b"x" * 70])),
    st.tuples(st.just("wrongtype"), KEYS),
    st.tuples(st.just("flush")),
    st.tuples(st.just("pass"), st.integers(1, 10_000)),
)


class Twins:
    """A real tier and the reference, that are told the same."""

    def __init__(self, face: str, url: str) -> None:
        self.clock = Clock()
        self.namespace = fresh_namespace()
        self.reference = ReferenceTier(limits=LIMITS, clock=self.clock, token=tokens())
        self.real = staged(face, url, self.namespace, LIMITS, self.clock)
        self.redis = Redis.from_url(url)
        self.granted: list[tuple[str, bytes, dict[str, bytes]]] = []

    def close(self) -> None:
        self.flush()
        self.real.close()
        self.redis.close()

    def both(self, name: str, *arguments: Any, **named: Any) -> Any:
        expected = getattr(self.reference, name)(*arguments, **named)
        found = getattr(self.real, name)(*arguments, **named)
        assert found == expected, f"{name}{arguments}"
        return found

    def open(self, positions) -> None:
        self.both("open", "cause", positions)

    def apply(self, bumps, stamps, positions) -> None:
        self.both("apply", bumps, stamps, positions)

    def lease(self, key, want, stamps, refresh) -> None:
        lease = self.both("lease", key, want, stamps, refresh=refresh)
        if lease.grant is Grant.GRANTED:
            self.granted.append((key, lease.lease, dict(zip(stamps, lease.stamps, strict=True))))

    def put(self, back, version, flags, payload, hard_ms=HARD_MS) -> None:
        key, token, stamps = self.lease_given(back)
        flags |= HAS_VALUE | (DERIVED if key.startswith("d:") else 0)
        self.both("put", Put(key, token, version, flags, 3, 9, payload, 17, hard_ms, 5, stamps))

    def fill(self, key, version, flags, stamps) -> None:
        self.lease(key, 0, stamps, refresh=True)
        self.put(0, version, flags, b"value")

    def release(self, back) -> None:
        self.both("release", *self.lease_given(back)[:2])

    def lease_given(self, back: int) -> tuple[str, bytes, dict[str, bytes]]:
        """One of the latest, or what nobody was ever given."""
        if back < len(self.granted):
            return self.granted[-1 - back]
        return RECORDS[0], bytes(8) if back % 2 else b"\xff" * 8, {}

    def evict(self, key) -> None:
        self.reference.evict(key)
        self.redis.delete(self.named(key))

    def foreign(self, key, data) -> None:
        self.reference.held[key] = Held(data, self.clock() + HARD_MS)
        self.redis.set(self.named(key), data, px=HARD_MS)

    def wrongtype(self, key) -> None:
        self.reference.evict(key)
        self.redis.delete(self.named(key))
        self.redis.rpush(self.named(key), "a list")

    def close_epoch(self) -> None:
        self.reference.epoch = None
        self.redis.delete(self.named("epoch"))

    def flush(self) -> None:
        self.reference.flush()
        if keys := self.redis.keys(self.named("*")):
            self.redis.delete(*keys)

    def named(self, key: str) -> str:
        return f"relay:{{{self.namespace}}}:{key}"

    def compare(self) -> None:
        """Answers to what readers ask, and how long everything lives."""
        names = RECORDS + STAMPS
        assert self.real.look(names) == self.both("look", names)
        self.both("progress")
        pipeline = self.redis.pipeline(transaction=False)
        for name in names:
            pipeline.pttl(self.named(name))
        for name, left in zip(names, pipeline.execute(), strict=True):
            held = self.reference.held.get(name)
            if held is not None:
                assert abs(left - (held.until_ms - self.clock())) < SLACK_MS, name


@pytest.fixture(params=["sync", "async"])
def twins(request, redis_url) -> Iterator[Twins]:
    """One pair for each face; a namespace is enough for all examples, as each begins with a flush."""
    pair = Twins(request.param, redis_url)
    yield pair
    pair.close()


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(OPERATIONS, min_size=1, max_size=20))
def test_any_sequence_of_operations_leaves_what_the_reference_says(twins, steps):
    """After each of any operations the answers, the bytes and the lifetimes are those of the reference."""
    twins.flush()
    twins.granted.clear()
    twins.open([])
    for step in steps:
        if step[0] == "pass":
            twins.clock.now_ms += step[1]
        else:
            getattr(twins, step[0])(*step[1:])
        twins.compare()


class Walk:
    """Steps that are drawn with an eye on what is there, so that most of them do something."""

    def __init__(self, twins: Twins, seed: int) -> None:
        self.twins = twins
        self.draw = random.Random(seed)
        self.steps = [self.apply] * 25 + [self.lease] * 20 + [self.put] * 25 + [self.fill] * 12 + [self.wait] * 8
        self.steps += [self.release] * 3 + [self.evict] * 3 + [self.open] * 2
        self.steps += [self.foreign, self.wrongtype, twins.close_epoch]

    def near(self, key: str) -> int:
        """A version about where the record is."""
        record = decode_record(self.twins.reference.look([key]).records[0])
        base = max(record.floor, record.version) if record is not None else 0
        return max(1, base + self.draw.choice([-1, 0, 0, 1, 1, 2]))

    def key(self) -> str:
        return self.draw.choice(RECORDS)

    def stamps(self) -> list[str]:
        return [stamp for stamp in STAMPS if self.draw.random() < 0.5]

    def flags(self) -> int:
        return self.draw.choice([0, 0, NEGATIVE, KEEP, KEEP])

    def positions(self) -> list[Position]:
        known = self.twins.reference.offsets
        places = [(topic, partition) for topic in "tu" for partition in (0, 1) if self.draw.random() < 0.3]
        lag = self.draw.choice([0, 0, 0, 0, -1, 1])
        return [
            Position(*at, max(0, known.get(at, 0) + lag), known.get(at, 0) + self.draw.randint(-1, 2)) for at in places
        ]

    def open(self) -> None:
        self.twins.open([at._replace(offset=max(0, at.offset)) for at in self.positions()])

    def apply(self) -> None:
        keys = [self.key() for _ in range(self.draw.randint(0, 3))]
        kinds = [(self.near(key), self.draw.random()) for key in keys]
        bumps = [
            Bump(key, None if drawn < 0.08 else version, drawn > 0.92)
            for key, (version, drawn) in zip(keys, kinds, strict=True)
        ]
        stamps = self.stamps() if self.draw.random() < 0.3 else []
        self.twins.apply(bumps, stamps, [at._replace(offset=max(0, at.offset)) for at in self.positions()])

    def lease(self) -> None:
        key = self.key()
        want = self.draw.choice([0, 0, self.near(key)])
        self.twins.lease(key, want, self.stamps(), refresh=self.draw.random() < 0.5)

    def put(self) -> None:
        back = self.draw.choice([0, 0, 0, 0, 1, 2])
        key = self.twins.lease_given(back)[0]
        hard_ms = self.draw.choice([HARD_MS, SHORT_MS])
        self.twins.put(back, self.near(key), self.flags(), self.draw.choice([b"", b"value", bytes(101)]), hard_ms)

    def fill(self) -> None:
        key = self.key()
        self.twins.lease(key, 0, self.stamps(), refresh=True)
        self.twins.put(0, self.near(key), self.flags(), b"value", self.draw.choice([HARD_MS, SHORT_MS]))

    def release(self) -> None:
        self.twins.release(self.draw.choice([0, 0, 1]))

    def evict(self) -> None:
        self.twins.evict(self.draw.choice(RECORDS + STAMPS))

    def foreign(self) -> None:
        self.twins.foreign(self.key(), self.draw.choice([b"", b"R\x01", bytes(64), b"x" * 70]))

    def wrongtype(self) -> None:
        self.twins.wrongtype(self.key())

    def wait(self) -> None:
        self.twins.clock.now_ms += self.draw.choice([100, 5_999, 6_000, 6_001])


@pytest.mark.parametrize(("twins", "seed"), [*(("sync", seed) for seed in range(5)), ("async", 5)], indirect=["twins"])
def test_a_long_walk_leaves_what_the_reference_says(twins, seed):
    """After each of hundreds of operations that build on one another, both are the same."""
    walk = Walk(twins, seed)
    twins.open([])
    for _ in range(300):
        walk.draw.choice(walk.steps)()
        twins.compare()


def test_a_refresh_that_loaded_something_older_is_refused(twins):
    """Under a lease that still holds, a value below the one that is there does not replace it; the same one does."""
    twins.open([])
    for version, expected in ((5, None), (4, Reject.FLOOR), (5, None), (6, None)):
        lease = twins.both("lease", RECORDS[0], 0, [], refresh=True)
        assert lease.grant is Grant.GRANTED
        put = Put(RECORDS[0], lease.lease, version, HAS_VALUE, 3, 9, b"value", 17, HARD_MS, 5, {})
        assert twins.both("put", put) is expected
        twins.both("release", RECORDS[0], lease.lease)


def test_more_events_than_fit_one_command_are_applied_by_several(twins):
    """1,500 events reach 1,500 records, and the progress is noted once."""
    twins.flush()
    twins.open([])
    bumps = [Bump(f"r:many:{number}", number + 1, False) for number in range(1_500)]
    assert twins.real.apply(bumps, ["s:a"], [Position("t", 0, 0, 1_500)]).lost is False
    found = twins.real.look([bump.key for bump in bumps])
    assert [record and decode_record(record).floor for record in found.records] == list(range(1, 1_501))
    assert twins.real.progress().offsets == {("t", 0): 1_500}


def test_events_that_claim_lost_progress_change_nothing(twins):
    """A batch that begins beyond what the tier has is refused as a whole, also if it takes several commands."""
    twins.flush()
    epoch = twins.real.open("cause", [Position("t", 0, 0, 4)])
    bumps = [Bump(f"r:lost:{number}", 1, False) for number in range(600)]
    assert twins.real.apply(bumps, [], [Position("t", 0, 5, 700)]) == Applied(epoch, lost=True)
    assert not any(twins.real.look([bump.key for bump in bumps]).records)
    assert twins.real.progress().offsets == {("t", 0): 4}


@pytest.mark.parametrize("damage", ["evicted", "of another type", "of another epoch"])
def test_progress_that_is_gone_is_lost_and_never_guessed(twins, damage):
    """Whatever happened to the progress, no event is applied whose consumer claims more than is there."""
    twins.flush()
    epoch = twins.real.open("cause", [Position("t", 0, 0, 9), Position("t", 1, 0, 9)])
    key = twins.named("progress")
    if damage == "of another epoch":
        twins.redis.hset(key, "epoch", b"another!")
    else:
        twins.redis.delete(key)
    if damage == "of another type":
        twins.redis.set(key, "a text")
    assert twins.real.progress().offsets == {}
    assert twins.real.apply([], [], [Position("t", 0, 9, 10)]) == Applied(epoch, lost=True)
    if damage != "of another type":
        assert twins.real.apply([], [], [Position("u", 0, 0, 1)]) == Applied(epoch, lost=False)
        assert twins.real.progress().offsets == {("u", 0): 1}
    twins.redis.delete(key)
    newer = twins.real.open("lost writes", [Position("t", 0, 0, 9)])
    assert twins.real.apply([], [], [Position("t", 0, 9, 10)]) == Applied(newer, lost=False)
    assert twins.real.progress().offsets == {("t", 0): 10}


@pytest.mark.parametrize("damage", [b"", b"short", b"much too long", None])
def test_a_damaged_epoch_is_no_epoch(twins, damage):
    """A tier whose epoch is not eight bytes is closed for all, until one begins."""
    twins.flush()
    twins.open([])
    key = twins.named("epoch")
    twins.redis.delete(key)
    if damage is None:
        twins.redis.rpush(key, "a list")
    else:
        twins.redis.set(key, damage)
    assert twins.real.look(RECORDS).epoch is None
    assert twins.real.progress().epoch is None
    assert twins.real.apply([Bump(RECORDS[0], 1, False)], [], []) == Applied(None, lost=False)
    assert twins.real.lease(RECORDS[0], 0, STAMPS, refresh=False).grant is Grant.CLOSED
    put = Put(RECORDS[0], bytes(8), 1, HAS_VALUE, 1, 1, b"", 0, 1000, 0, {})
    assert twins.real.put(put) is Reject.CLOSED
    assert twins.real.look([RECORDS[0]]).records == [None]
    assert twins.real.look([]).epoch is None
    epoch = twins.real.open("closed", [])
    assert twins.real.look([]).epoch == epoch


def test_the_server_tells_the_time_by_its_own_clock(redis_url, namespace):
    """Without a clock of the test, leases and `time` show the server's."""
    from relay.cache.redis import RedisShared

    tier = RedisShared.from_url(redis_url, namespace, timeout_seconds=20)
    tier.open("first", [])
    with Redis.from_url(redis_url) as client:
        seconds, micros = client.time()
        before = seconds * 1000 + micros // 1000
        leased = tier.lease("r:a:1", 0, [], refresh=False)
        told = tier.time()
        seconds, micros = client.time()
    assert before <= leased.now_ms <= told <= seconds * 1000 + micros // 1000
    record = decode_record(tier.look(["r:a:1"]).records[0])
    assert record is not None
    assert record.lease_until_ms == leased.now_ms + tier.commands.limits.lease_ms
    tier.close()
