"""A glance at a record finds what a close look finds, or nothing."""

from __future__ import annotations

from math import log
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from relay.cache.codecs import JsonCodec
from relay.cache.numbers import Numbers
from relay.cache.plan import Plan
from relay.cache.reader import Reader, Target
from relay.core.policy import Bounded, Eventual, Policy
from relay.core.record import DERIVED, HAS_VALUE, KEEP, NEGATIVE, UNKNOWN, Record, encode_record

EPOCH, OTHER = b"epoch--1", b"epoch--2"
NOW_MS = 1_000_000
CODEC = JsonCodec()

records = st.builds(
    Record,
    flags=st.sampled_from(
        [HAS_VALUE] * 6 + [0, HAS_VALUE | NEGATIVE, HAS_VALUE | UNKNOWN, HAS_VALUE | KEEP, DERIVED | HAS_VALUE]
    ),
    codec=st.sampled_from([CODEC.id] * 6 + [0]),
    schema=st.sampled_from([1] * 6 + [2]),
    epoch=st.sampled_from([EPOCH] * 6 + [OTHER]),
    floor=st.integers(0, 4),
    version=st.integers(0, 4),
    lease=st.just(bytes(8)),
    lease_until_ms=st.just(0),
    written_at_ms=st.integers(NOW_MS - 20_000, NOW_MS + 1000),
    soft_ms=st.integers(1, 20_000),
    load_ms=st.integers(0, 3000),
    payload=st.sampled_from([b'{"a": 1}'] * 6 + [b"no json", b""]),
)
policies: st.SearchStrategy[Policy] = st.one_of(st.just(Eventual()), st.builds(Bounded, st.floats(0, 20)))


def reader(*, is_derived: bool = False) -> Reader:
    """It draws the same each time, so that both judge alike."""
    made: Any = Reader(
        Plan("user", CODEC, hard_ttl=1000, soft_ttl=500),
        lambda id_: Target(str(id_), str(id_), (id_,)),
        lambda: None,
        recorder=Numbers(),
        has_shared=True,
        is_derived=is_derived,
        clock=lambda: 50.0,
        draw=lambda: 0.5,
    )
    made.server_clock.learn(NOW_MS, 50.0)
    return made  # type: ignore[no-any-return]


ENTITY, RESULT = reader(), reader(is_derived=True)


@given(record=records, need=st.integers(0, 4), policy=policies)
@settings(max_examples=150, deadline=None)
def test_a_glance_at_the_record_of_an_entity_finds_what_a_close_look_finds(record, need, policy):
    agree(ENTITY, record, need, policy)


@given(record=records, need=st.integers(1, 4), policy=policies)
@settings(max_examples=100, deadline=None)
def test_a_glance_at_a_result_finds_what_a_close_look_finds(record, need, policy):
    agree(RESULT, record._replace(flags=record.flags | DERIVED, floor=0), need, policy)


def age_left(record: Record, policy: Policy) -> float:
    age = max(0.0, (NOW_MS - record.written_at_ms) / 1000) + record.load_ms / 1000
    return policy.seconds - age if isinstance(policy, Bounded) else 1.0


def agree(by: Reader, record: Record, need: int, policy: Policy) -> None:
    since = (NOW_MS - record.written_at_ms) / 1000
    for end in (record.soft_ms / 1000 - since - record.load_ms / 1000 * log(2), age_left(record, policy)):
        assume(abs(end) > 0.002)  # On the edge it is rounding that decides.
    data = encode_record(record)
    moment = by.moment(EPOCH, policy)
    assert moment is not None
    glanced = by.at_a_glance.glance(data, need, moment)
    sight = by.see(EPOCH, data, need, policy)
    if glanced is not None:
        assert sight.found is not None
        assert (glanced.value, glanced.version, glanced.tier) == sight.found[:3]
        assert glanced.as_of is not None
        assert sight.found.as_of is not None
        assert abs(min(glanced.as_of, 50.0 - record.load_ms / 1000) - sight.found.as_of) < 0.001
        assert not sight.is_due or record.written_at_ms > NOW_MS
    elif record.flags == by.flags | HAS_VALUE and record.written_at_ms <= NOW_MS:
        assert sight.found is None or sight.is_due


def test_a_glance_at_bytes_that_are_no_record_finds_nothing():
    moment = ENTITY.moment(EPOCH, Eventual())
    assert moment is not None
    head = encode_record(Record(HAS_VALUE, CODEC.id, 1, EPOCH, 0, 0, bytes(8), 0, 0, 0, 0, b""))
    for data in (None, b"", head[:16], head[:63]):
        assert ENTITY.at_a_glance.glance(data, 0, moment) is None
        assert ENTITY.at_a_glance.values(["x"], [data], moment) == ({}, ["x"])


@given(records=st.lists(records, max_size=5))
@settings(max_examples=60, deadline=None)
def test_the_values_of_many_are_those_of_each(records):
    moment = ENTITY.moment(EPOCH, Eventual())
    assert moment is not None
    encoded = [encode_record(record) for record in records]
    each = [ENTITY.at_a_glance.glance(data, 0, moment) for data in encoded]
    for _ in range(2):  # the second time by what is remembered of the first
        values, left = ENTITY.at_a_glance.values(range(len(encoded)), encoded, moment)
        assert values == {number: one.value for number, one in enumerate(each) if one is not None}
        assert left == [number for number, one in enumerate(each) if one is None]
