"""What Python makes of an event before the database sees it, and what it refuses without repeating it."""

from __future__ import annotations

import json
import sys
from enum import IntEnum, StrEnum
from types import SimpleNamespace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import EventError
from relay.outbox.events import DEPTH_MAX, Event, encode, encode_headers, entity_change, json_member
from relay.outbox.refusals import translated
from relay.outbox.trace import current_trace

SECRET = "4929-1111"
ID = UUID("0274e960-46e3-4a63-b34c-40f3944acd2e")


class Colour(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


def refusal(call, *args) -> EventError:
    """The error, after a look that nothing of the event is in it, in what it chains, or without a fix."""
    with pytest.raises(EventError) as caught:
        call(*args)
    error = caught.value
    assert error.fix
    assert SECRET not in str(error) + repr(error)
    assert error.__context__ is None
    assert error.__cause__ is None
    return error


def encoded(payload, headers=None):
    return encode(Event("t", "k", payload, headers), {})


@pytest.mark.parametrize(
    ("payload", "body", "content_type"),
    [
        (b"\x00\xff", b"\x00\xff", "application/octet-stream"),
        (b"", b"", "application/octet-stream"),
        ("grün\x00", "grün\x00".encode(), "text/plain; charset=utf-8"),
        ({"ä": [1, 2.5, None, True]}, '{"ä":[1,2.5,null,true]}'.encode(), "application/json"),
        ([], b"[]", "application/json"),
    ],
)
def test_a_payload_travels_as_bytes_and_says_what_they_are(payload, body, content_type):
    event = encoded(payload)
    assert event.payload == body
    assert json.loads(event.headers) == {"content-type": content_type}


def test_a_tombstone_has_no_payload_and_no_content_type():
    assert encoded(None).payload is None
    assert json.loads(encoded(None).headers) == {}


def test_the_users_content_type_wins():
    assert json.loads(encoded({}, {"content-type": "application/x"}).headers) == {"content-type": "application/x"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_every_json_document_comes_back_as_it_was(document):
    assert json.loads(encoded([document]).payload or b"") == [document]


@pytest.mark.parametrize("key", [7, ID, b"k", 1.5, True, ["k"]])
def test_a_key_is_a_text_and_never_converted_silently(key):
    error = refusal(encode, Event("t", key, None), {})
    assert error.code == "RLY-109"
    assert type(key).__name__ in error.message
    assert "str(...)" in error.fix


def test_an_event_may_have_no_key():
    assert encode(Event("t", None, None), {}).key is None


def test_a_text_that_is_also_an_enum_is_taken_by_its_value():
    key = encode(Event("t", Colour.RED, None), {}).key
    assert (key, type(key)) == ("red", str)


@pytest.mark.parametrize("payload", [7, 1.5, True, ID, {1}, (1,), bytearray(b"x"), object()])
def test_a_payload_of_another_type_is_refused_by_name(payload):
    error = refusal(encoded, payload)
    assert error.code == "RLY-110"
    assert f" {type(payload).__name__}" in error.message


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ({"a": 1, "b": [{"c": SECRET.encode()}]}, "$.b[0].c"),
        ({"a": {"not a name": {SECRET}}}, "$.a['not a name']"),
        ([SECRET, float("nan")], "$[1]"),
        ({"x": float("inf")}, "$.x"),
        ({"x": SECRET + "\ud800"}, "$.x"),
        ({"x": {(1, 2): 3}}, "the name of $.x[tuple]"),
        ({"x": {ID: 3}}, "the name of $.x[UUID]"),
        pytest.param({"x": 10**5000}, "$.x", id="huge"),
        ([[], (), {}, [ID]], "$[3][0]"),
    ],
)
def test_what_is_no_json_is_named_by_its_path_and_never_by_its_value(payload, path):
    error = refusal(encoded, payload)
    assert error.code == "RLY-110"
    assert f"at {path}:" in error.message


def test_a_document_that_contains_itself_is_refused():
    loop: list[object] = [SECRET]
    loop.extend([loop, loop])
    assert f"deeper than {DEPTH_MAX} levels" in refusal(encoded, loop).message
    assert len(refusal(encoded, {"x" * 10_000: loop}).message) < 400


def test_a_text_without_a_form_in_utf_8_is_refused():
    assert refusal(encoded, SECRET + "\ud800").code == "RLY-110"


@pytest.mark.parametrize("bad", [SECRET + "\x00", SECRET + "\udfff"])
def test_a_text_that_postgres_cannot_store_is_refused_where_it_stands(bad):
    assert refusal(encode, Event(bad, "k", None), {}).code == "RLY-101"
    assert refusal(entity_change, bad, 1, "updated", None).code == "RLY-102"
    assert refusal(entity_change, "user", bad, "updated", None).code == "RLY-103"
    assert refusal(entity_change, "user", 1, bad, None).code == "RLY-105"
    assert refusal(encode_headers, {bad: "x"}, {}).code == "RLY-106"
    assert refusal(encode_headers, {"x": bad}, {}).code == "RLY-107"
    assert refusal(encode, Event("t", bad, None), {}).code == "RLY-109"


@pytest.mark.parametrize(
    ("headers", "code", "said"),
    [
        ([("a", "b")], "RLY-106", "list"),
        ({1: "b"}, "RLY-106", "int"),
        ({"a": 1}, "RLY-107", "'a'"),
        ({"a": None}, "RLY-107", "NoneType"),
        ({"a": SECRET.encode()}, "RLY-107", "bytes"),
    ],
)
def test_headers_are_texts(headers, code, said):
    error = refusal(encode_headers, headers, {})
    assert error.code == code
    assert said in error.message


@pytest.mark.parametrize("name", ["topic", "entity", "action"])
def test_names_are_texts(name):
    codes = {"topic": "RLY-101", "entity": "RLY-102", "action": "RLY-105"}
    names = {"entity": "user", "id": 1, "action": "updated", "topic": "t"} | {name: 7}
    assert refusal(lambda: entity_change(**names)).code == codes[name]


@pytest.mark.parametrize(
    ("given_id", "text"), [("7", "7"), (7, "7"), (Number.ONE, "1"), (ID, str(ID)), (Colour.RED, "red")]
)
def test_an_entity_is_known_by_the_text_of_its_id(given_id, text):
    assert entity_change("user", given_id, "updated", None)["id"] == text


@pytest.mark.parametrize("wrong", [True, 1.0, None, b"7", ["7"], pytest.param(10**5000, id="huge")])
def test_other_entity_ids_are_refused(wrong):
    assert refusal(entity_change, "user", wrong, "updated", None).code == "RLY-103"


@pytest.mark.parametrize("payload", [{"a": [1]}, ["\\u0000"], "text", 7, False])
def test_the_payload_of_an_entity_change_is_any_json(payload):
    assert json.loads(json_member(payload) or "") == payload


def test_an_entity_change_needs_no_payload():
    assert json_member(None) is None


@pytest.mark.parametrize(
    ("payload", "path"), [({"a": [SECRET + "\x00"]}, "$.a[0]"), ({"a": {"\x00": SECRET}}, "the name of $.a['\\x00']")]
)
def test_a_nul_in_an_entity_changes_payload_is_found_before_postgres_quotes_it(payload, path):
    error = refusal(json_member, payload)
    assert error.code == "RLY-110"
    assert error.message.endswith(f"at {path}")


def test_nothing_of_the_payload_is_in_the_repr_of_an_event():
    event = Event("t", "k", {"card": SECRET}, {"card": SECRET})
    assert SECRET not in repr(event) + repr(encode(event, {}))


def tracing(monkeypatch, *, valid: bool = True, state: str = ""):
    context = SimpleNamespace(
        is_valid=valid,
        trace_id=0xABC,
        span_id=0xDEF,
        trace_flags=1,
        trace_state=SimpleNamespace(to_header=lambda: state),
    )
    span = SimpleNamespace(get_span_context=lambda: context)
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", SimpleNamespace(get_current_span=lambda: span))


def test_the_current_span_goes_with_the_event(monkeypatch):
    tracing(monkeypatch, state="vendor=1")
    parent = "00-00000000000000000000000000000abc-0000000000000def-01"
    assert current_trace() == {"traceparent": parent, "tracestate": "vendor=1"}
    assert json.loads(encode_headers({"a": "b"}, current_trace())) == {"a": "b", **current_trace()}


def test_without_a_span_or_without_opentelemetry_there_is_no_trace(monkeypatch):
    monkeypatch.delitem(sys.modules, "opentelemetry.trace", raising=False)
    assert current_trace() == {}
    tracing(monkeypatch, valid=False)
    assert current_trace() == {}
    tracing(monkeypatch)
    assert list(current_trace()) == ["traceparent"]


def test_a_traceparent_of_ones_own_is_kept_without_a_strangers_state():
    trace = {"traceparent": "00-ab", "tracestate": "vendor=1"}
    assert json.loads(encode_headers({"traceparent": "own"}, trace)) == {"traceparent": "own"}


def test_other_errors_than_the_relays_are_left_alone():
    for state in ("40001", "40P01", "RL999", "RL", None):
        error = Exception()
        error.sqlstate = state  # type: ignore[attr-defined]
        assert translated(error) is error
    plain = ValueError("x")
    assert translated(plain) is plain
