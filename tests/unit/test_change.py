"""What a record of Kafka is taken for: a change, or malformed with a reason. No bytes whatever make it fail."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.change import Change, Limits, Malformed, decode, entity_of_key, parse_json
from relay.core.record import VERSION_MAX

OF_RELAY = [
    ("event_id", b"018f7f2a-0000-8000-8000-000000000001"),
    ("entity", b"user"),
    ("id", b"42"),
    ("action", b"updated"),
    ("version", b"7"),
    ("ts", b"2026-01-01T00:00:00.000000Z"),
    ("content-type", b"application/json"),
]
VALUE = b'{"entity":"user","id":"42","action":"updated","version":7,"ts":"2026-01-01T00:00:00.000000Z"}'

names = st.sampled_from(["entity", "id", "action", "version", "ts", "event_id", "envelope", "trace"])
raw = st.binary(max_size=40)
sound = st.sampled_from([b"user", b"42", b"7", b"deleted", b"1", b"0x1", b"9" * 30, b"\xff", b"a:b"])
headers = st.lists(st.tuples(names, st.none() | raw | sound), max_size=9)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
documents = st.recursive(scalars, lambda s: st.lists(s, max_size=4) | st.dictionaries(names | st.text(max_size=4), s))
values = st.none() | raw | documents.map(lambda d: json.dumps(d).encode())


def replaced(**fields: bytes | None) -> list[tuple[str, bytes | None]]:
    return [(name, fields.get(name, value)) for name, value in OF_RELAY]


def refusal(outcome: Change | Malformed) -> str:
    assert isinstance(outcome, Malformed)
    return outcome.reason


@given(st.none() | raw, values, st.none() | headers)
def test_no_record_whatever_makes_decoding_fail(key, value, found):
    """What is decoded is within its limits; everything else is refused, and nothing raises."""
    outcome = decode(key, value, found)
    if isinstance(outcome, Malformed):
        assert outcome.reason
        return
    assert 0 < len(outcome.entity) <= 128
    assert ":" not in outcome.entity
    assert 0 < len(outcome.id.encode()) <= 1024
    assert outcome.version is None or 0 <= outcome.version <= VERSION_MAX


@given(documents)
def test_headers_and_value_of_a_change_say_the_same(rubbish):
    """A change of the relay is read alike from its headers alone, from its value alone, and beside any rubbish."""
    from_headers, from_value = decode(b"user:42", None, OF_RELAY), decode(None, VALUE, None)
    assert isinstance(from_headers, Change)
    assert isinstance(from_value, Change)
    assert from_headers[:5] == from_value[:5] == ("user", "42", "updated", 7, "2026-01-01T00:00:00.000000Z")
    assert decode(None, json.dumps(rubbish).encode(), OF_RELAY)[:5] == from_headers[:5]


def test_a_record_without_value_is_a_deletion():
    """Whether its headers say everything, or only its key says what is gone."""
    with_headers, bare = decode(b"user:42", None, OF_RELAY), decode(b"user:4:2", None, None)
    assert isinstance(with_headers, Change)
    assert with_headers.is_deletion
    assert bare == Change("user", "4:2", "updated", None, None, None, None)
    assert bare.is_deletion


def test_the_action_deleted_is_a_deletion():
    """As is an event without a value; any other action is none."""
    assert decode(None, VALUE, replaced(action=b"deleted")).is_deletion  # type: ignore[union-attr]
    assert not decode(None, VALUE, OF_RELAY).is_deletion  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b'{"entity": "user", "id": 42}', None),
        (b'{"entity": "user", "id": "42", "version": null, "extra": [1, 2]}', None),
        (b"\x00\x01not json at all", [("entity", b"user"), ("id", b"42")]),
    ],
    ids=["number as id", "null as version", "foreign format"],
)
def test_an_event_without_version_is_a_change_without_version(value, found):
    """Events of others name an entity and nothing more: enough to invalidate it."""
    outcome = decode(b"k", value, found)
    assert isinstance(outcome, Change)
    assert (outcome.entity, outcome.id, outcome.version) == ("user", "42", None)


@pytest.mark.parametrize(
    ("value", "found", "reason"),
    [
        (b"x" * 1_048_577, OF_RELAY, "the value is too large"),
        (VALUE, [(str(n), b"") for n in range(10_000)], "there are too many headers"),
        (VALUE, [*OF_RELAY, ("version", b"8")], "a header is there twice"),
        (VALUE, [*OF_RELAY, ("envelope", b"2")], "the envelope is of an unknown version"),
        (b'{"envelope": 2, "entity": "user", "id": "1"}', None, "the envelope is of an unknown version"),
        (b"[" * 100_000, None, "the value is nested too deeply"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, None, "the value is nested too deeply"),
        (VALUE[:-5], None, "the value is no JSON"),
        (b"\x80\x04K\x01.", None, "the value is no JSON"),
        (b"[1]", None, "it names no entity"),
        (b'{"entity": "user"}', None, "it names no entity"),
        (b'{"entity": ["user"], "id": "1"}', None, "the entity is invalid"),
        (b'{"entity": "us:er", "id": "1"}', None, "the entity is invalid"),
        (b'{"entity": "user", "id": {}}', None, "the id is invalid"),
        (b'{"entity": "user", "id": "\\ud800"}', None, "the id is invalid"),
        (b'{"entity": "user", "id": "a\\nb"}', None, "the id is invalid"),
        (b'{"entity": "user", "id": "1", "version": 1.5}', None, "the version is invalid"),
        (b'{"entity": "user", "id": "1", "version": -1}', None, "the version is invalid"),
        (b'{"entity": "user", "id": "1", "version": true}', None, "the version is invalid"),
        (VALUE, replaced(version=b"9007199254740992"), "the version is invalid"),
        (VALUE, replaced(version=b"+7"), "the version is invalid"),
        (VALUE, replaced(id=b"\xff\xfe"), "the id is invalid"),
        (VALUE, replaced(ts=b"\xff\xfe"), "a header is invalid"),
        (VALUE, replaced(action=b""), "the action is invalid"),
    ],
)
def test_what_is_malformed_says_why_and_whose_it_is(value, found, reason):
    """Each reason is a constant text, and the key still tells which entity must not be trusted."""
    outcome = decode(b"user:42", value, found)
    assert refusal(outcome) == reason
    assert outcome == Malformed(reason, "user", "42")


def test_a_repeated_header_of_somebody_else_is_nobodys_business():
    """Kafka allows repeated names; only those that are read here must be unambiguous."""
    assert isinstance(decode(None, VALUE, [*OF_RELAY, ("baggage", b"a"), ("baggage", b"b")]), Change)


@given(st.binary(max_size=60))
def test_a_key_names_an_entity_or_none(key):
    """Only `entity:id` with a sound name does, and then nothing of the key is lost."""
    found = entity_of_key(key)
    assert found is None or ":".join(found).encode() == key


@given(documents, st.integers(1, 6))
def test_depth_is_counted_outside_of_strings(document, depth_max):
    """A document passes exactly if its brackets nest no deeper than allowed, whatever its strings hold."""

    def depth(part: object) -> int:
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    text = json.dumps([document, '[[[[{{{\\"']).encode()
    if 1 + depth(document) <= depth_max:
        parse_json(text, depth_max)
    else:
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(text, depth_max)


def test_limits_are_looked_at_before_anything_is_decoded():
    """A value above the limit is refused even though the headers would do."""
    assert refusal(decode(None, VALUE, OF_RELAY, Limits(value_bytes=10))) == "the value is too large"
